"""What holds for the code as a whole: sizes, names, imports, and that the README knows every file."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE_LINES = 400
FUNCTION_LINES = 60
DUPLICATE_STATEMENTS = 4
"""Two functions whose bodies are equal and at least so long are one function too many."""
SOURCE_FOLDERS = ("operator", "node", "tools", "benchmarks")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[Path]:
    """Every Python file below the given folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> Iterator[Function]:
    """Every function and method of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def name(path: Path) -> str:
    """A file's name within the repository."""
    return path.relative_to(ROOT).as_posix()


def test_no_folder_that_only_holds_packages_is_one_itself() -> None:
    """`operator/__init__.py` would hide the standard library's `operator` from whoever starts Python here."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "node" / "__init__.py").exists()
    assert [name(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


@pytest.mark.parametrize("module", ["pcmoe_operator.cli", "pcmoe_node.config", "pcmoe_node.protocol.step"])
def test_what_needs_no_torch_imports_none(module: str) -> None:
    check = f"import {module}, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    path = [str(ROOT / "operator"), str(ROOT / "node")]
    program = f"import sys; sys.path[:0] = {path!r}; {check}"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_no_module_is_longer_than_its_budget() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in sources(*SOURCE_FOLDERS)}
    assert {path: lines for path, lines in lengths.items() if lines > MODULE_LINES} == {}


def test_no_function_is_longer_than_its_budget() -> None:
    long = {
        f"{name(path)}:{function.lineno} {function.name}": lines
        for path in sources(*SOURCE_FOLDERS)
        for function in functions(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    }
    assert long == {}


def test_no_function_is_written_twice() -> None:
    places = defaultdict(list)
    for path in sources("operator", "node"):
        for function in functions(path):
            body = [
                s
                for s in function.body
                if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            ]
            if len(body) >= DUPLICATE_STATEMENTS:
                key = "\n".join(ast.dump(statement) for statement in body)
                places[key].append(f"{name(path)}:{function.lineno} {function.name}")
    assert [found for found in places.values() if len(found) > 1] == []


def test_the_node_has_one_flag_only() -> None:
    """Everything else is in its configuration, which the operator writes."""
    calls = [
        [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        for node in ast.walk(ast.parse((ROOT / "node/pcmoe_node/__main__.py").read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "add_argument"
    ]
    assert calls == [["--config"]]


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    pattern = re.compile(r"mark\.(skip|xfail)\b|pytest\.(skip|xfail)\(")
    assert [name(path) for path in sources("tests") if pattern.search(path.read_text())] == []


def readme_files() -> set[str]:
    """Every file of the README's tree, its folders put before it by indentation."""
    block = (ROOT / "README.md").read_text().split("## The files", 1)[1].split("```")[1]
    folders: list[str] = []
    found = set()
    for line in block.splitlines()[1:]:
        indent = (len(line) - len(line.lstrip())) // 2
        for entry in line.split("  ")[indent].split():
            folders = [*folders[:indent], entry]
            found.add("".join(folders))
    return found


def test_the_readme_has_a_line_for_every_source_file() -> None:
    telling = [path for path in sources(*SOURCE_FOLDERS) if len(ast.parse(path.read_text()).body) > 1]
    missing = {name(path) for path in telling} - readme_files()
    assert sorted(missing) == []


def test_the_readme_names_no_file_that_is_not_there() -> None:
    assert sorted(entry for entry in readme_files() if not (ROOT / entry).exists()) == []
