"""Checks the Helm chart, as `make check` does; with --write brings up to date what is made from other files.

    python -m tools.chart_check            Helm's lint, unit tests, schemas of the API server, kube-score, promtool
    python -m tools.chart_check --write    the chart's copy of crd.yaml, its dashboards, and its README's table

Schemas are taken from the API server that tests run on, once per version; nothing is downloaded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.cluster import build
from tests.cluster.errors import BuildError
from tests.cluster.plane import ControlPlane
from tools.dashboards import __main__ as dashboards

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "pcmoe"
CRD, CRD_COPY = ROOT / "manifests" / "crd.yaml", CHART / "files" / "crd.yaml"
README = CHART / "README.md"
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"
SECONDS = 120.0
FOREIGN = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
"""Kinds of the Prometheus operator, whose schemas no API server of ours has; unit tests look at them."""
RULES = CHART / "files" / "alerts.yaml"
PROGRAMS = ("helm", "helm-unittest", "kubeconform", "kube-score", "promtool", *build.PLANE)
NOT_SCORED = {
    "container-security-context-user-group-id": "no user is fixed: OpenShift gives each namespace its own",
    "deployment-has-poddisruptionbudget": "training goes on without the operator; draining must not wait for it",
    "container-image-pull-policy": "images are to be named by digest; then there is nothing new to pull",
}
"""kube-score's tests that are not followed, each with the reason. A CPU limit is another: see `score`."""


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="python -m tools.chart_check", description=__doc__)
    parser.add_argument("--write", action="store_true", help="bring the chart's generated parts up to date")
    if parser.parse_args().write:
        CRD_COPY.write_bytes(CRD.read_bytes())
        README.write_text(with_table(README.read_text()))
        dashboards.write()
        return 0
    try:
        return check(build.ensure(*PROGRAMS))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1


def check(programs: Mapping[str, Path]) -> int:
    """Every check; stops at none, ends with 1 if one of them failed."""
    good = run("helm lint", programs["helm"], "lint", "--strict", "--quiet", CHART)
    good &= run("helm-unittest", programs["helm-unittest"], "--strict", CHART)
    good &= reads_rules(programs["promtool"], "the file", RULES.read_text())
    old = dashboards.stale()
    print(f"dashboards: {f'FAILED, not up to date: {old}; run with --write' if old else 'ok'}")
    good &= not old
    known = schemas_of_api_server(ROOT / "build")
    for values in sorted((CHART / "ci").glob("*-values.yaml")):
        name = values.name.removesuffix("-values.yaml")
        where = ("--namespace", "pcmoe-system", "--values", values)
        done = started(programs["helm"], "template", "pcmoe", CHART, *where)
        if done.returncode:
            print(f"helm template, {name}: {done.stderr}", file=sys.stderr)
            good = False
            continue
        good &= conforms(programs["kubeconform"], name, done.stdout, known)
        good &= score(programs["kube-score"], name, done.stdout)
        for made in yaml.safe_load_all(done.stdout):
            if made and made["kind"] == "PrometheusRule":
                good &= reads_rules(programs["promtool"], name, yaml.safe_dump(made["spec"]))
    return 0 if good else 1


def conforms(program: Path, name: str, rendered: str, schemas: Path) -> bool:
    """Whether every object has only fields that the API server knows, of the right types."""
    pattern = str(schemas / "{{.ResourceKind}}{{.KindSuffix}}.json")
    options = ("-strict", "-summary", "-skip", ",".join(FOREIGN), "-schema-location", pattern)
    return run(f"kubeconform, {name}", program, *options, given=rendered)


def score(program: Path, name: str, rendered: str) -> bool:
    """Whether kube-score finds nothing that we don't know why it is so."""
    ignored = [part for test in NOT_SCORED for part in ("--ignore-test", test)]
    # An operator that is throttled can't renew its Lease in time.
    options = ("--output-format", "ci", "--ignore-container-cpu-limit", *ignored)
    return run(f"kube-score, {name}", program, "score", "-", *options, given=rendered)


def reads_rules(program: Path, name: str, rules: str) -> bool:
    """Whether Prometheus can read rules, and finds nothing odd in them."""
    return run(f"promtool, {name}", program, "check", "rules", "--lint=all", "--lint-fatal", given=rules)


def run(name: str, *command: str | Path, given: str | None = None) -> bool:
    """Run a check and say how it went; all that it said where it failed."""
    done = started(*command, given=given)
    print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}")
    if done.returncode:
        print(done.stdout, done.stderr, sep="", file=sys.stderr)
    return done.returncode == 0


def started(*command: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        [*map(str, command)], input=given, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def schemas_of_api_server(folder: Path) -> Path:
    """A folder with a JSON schema for every kind, as kubeconform looks for them; made if it isn't there."""
    target = folder / f"schemas-{build.required('k8s.io/kubernetes')}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            with ControlPlane(Path(temporary) / "plane") as plane:
                document = json.loads(plane.kubectl("get", "--raw", "/openapi/v2"))
            made = Path(temporary) / "schemas"
            made.mkdir()
            for name, schema in schemas(document["definitions"]):
                (made / name).write_text(json.dumps(schema))
            made.rename(target)
    return target


def schemas(definitions: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Files with all definitions, and with each kind."""
    closed = {name: close(schema) for name, schema in definitions.items()}
    closed["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["string", "number"]}
    yield "definitions.json", {"definitions": closed}
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            parts = filter(None, (kind["kind"], kind["group"].split(".")[0], kind["version"]))
            yield f"{'-'.join(parts).lower()}.json", {"$ref": f"definitions.json#/definitions/{name}"}


def close(schema: Any) -> Any:
    """The same, with no fields but those named, and with numbers where Kubernetes takes them beside strings."""
    if isinstance(schema, list):
        return [close(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "int-or-string":
        return {"type": ["string", "integer"]}
    made = {key: close(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    return made


def rows() -> Iterator[tuple[str, Any, str]]:
    """Every value that can be set: its path, its default, what it means."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    yield from _rows(schema, schema["$defs"], yaml.safe_load((CHART / "values.yaml").read_text()), "")


def _rows(
    schema: Mapping[str, Any], shared: Mapping[str, Any], values: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Any, str]]:
    for name, found in schema["properties"].items():
        if path + name == "global":
            continue  # Helm's own
        field = {**shared.get(found.get("$ref", "").rpartition("/")[2], {}), **found}
        if "properties" in field:
            yield from _rows(field, shared, values[name], f"{path}{name}.")
        else:
            yield path + name, values[name], field["description"]


def with_table(readme: str) -> str:
    """The README with the table of values as it is now."""
    before, rest = readme.split(BEGIN)
    lines = [f"| `{path}` | `{json.dumps(default)}` | {text} |" for path, default, text in rows()]
    table = "\n".join(["| value | default | meaning |", "|---|---|---|", *lines])
    return f"{before}{BEGIN}{table}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    sys.exit(main())
