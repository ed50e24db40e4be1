"""The floors of docs/index.md hold: imports go downward, rooms on one floor do not import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "llava_pat"
FLOOR = {
    "types": 0,
    "data": 1,
    "models": 1,
    "alignment": 1,
    "analysis": 1,
    "pages": 1,
    "training": 2,
    "merge": 2,
    "evaluation": 2,
    "labelling": 2,
    "annotation": 2,
    "convert": 3,
    "performance": 3,
    "profile": 4,
    "replay": 3,
    "plan": 4,
}
ENTRY_FOLDERS = ("train", "eval")
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(source: str, package: str) -> set[str]:
    """Full dotted names that a module's text imports, at any depth; relative imports resolved against `package`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def room_of(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


def violations(room: str, imported: set[str]) -> list[str]:
    broken = []
    for name in sorted(imported):
        top = name.split(".")[0]
        if top in (*ENTRY_FOLDERS, "tests", "scripts", "playground"):
            broken.append(f"{name}: the library imports what stands on top of it")
        if top != "llava_pat" or room_of(name) in ("", room):
            continue
        other = room_of(name)
        if other.startswith("__"):
            continue
        if name.split(".")[-1] == "__main__":
            broken.append(f"{name}: a command is nobody's library")
        if other not in FLOOR:
            broken.append(f"{name}: llava_pat/{other} has no floor")
        elif FLOOR[other] > FLOOR[room]:
            broken.append(f"{name}: upward from {room} to {other}")
        elif FLOOR[other] == FLOOR[room]:
            broken.append(f"{name}: {room} and {other} stand on the same floor")
    return broken


def test_every_file_has_a_room() -> None:
    names = {source.relative_to(PACKAGE).parts[0].removesuffix(".py") for source in SOURCES} - {"__init__"}
    assert names <= set(FLOOR), f"rooms without a floor: {names - set(FLOOR)}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward(source: Path) -> None:
    parts = source.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        assert not imports(source.read_text(), "llava_pat"), "importing llava_pat must load nothing"
        return
    if parts[-1] == "__main__":
        return  # a command, whatever room it is called by: it stands on top
    package = ".".join(["llava_pat", *parts[:-1]])
    assert not violations(parts[0], imports(source.read_text(), package))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_habits(source: Path) -> None:
    assert source.name != "utils.py", "a file is named after its one job"
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            assert len(node.args) < 3, f"line {node.lineno}: getattr with a default hides a missing attribute"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            assert not all(isinstance(step, ast.Pass) for step in node.body), (
                f"line {node.lineno}: a swallowed exception"
            )


@pytest.mark.parametrize(
    "source", [s for f in ENTRY_FOLDERS for s in sorted((ROOT / f).glob("*.py"))], ids=lambda p: p.name
)
def test_entry_points_only_parse_and_call(source: Path) -> None:
    lines = len(source.read_text().splitlines())
    assert lines <= 30, f"{source} has {lines} lines; logic lives in llava_pat/"


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("data", "from llava_pat.types import Record", 0),
        ("data", "import torch", 0),
        ("training", "from llava_pat.alignment import available", 0),
        ("data", "from llava_pat.models.vlm import X", 1),  # same floor
        ("data", "from llava_pat import models", 1),
        ("models", "from ..data import records", 1),
        ("analysis", "def f():\n    import llava_pat.training.stages", 1),  # upward, hidden in a function
        ("types", "from llava_pat.data import records", 1),
        ("data", "from playground import world", 1),
        ("data", "from . import records", 0),
    ],
)
def test_the_rule_itself(room: str, source: str, expected: int) -> None:
    package = "llava_pat" if room == "types" else f"llava_pat.{room}"
    assert len(violations(room, imports(source, package))) == expected
