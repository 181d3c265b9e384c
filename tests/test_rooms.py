"""The house rules that a machine can keep: imports only downward, files of one idea."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "process_gen"
MAY_IMPORT = {
    "common": set(),
    "trajectory": set(),
    "distributed": set(),
    "scenes": {"trajectory"},
    "models": {"trajectory"},
    "reports": {"trajectory"},
    "data": {"trajectory", "scenes", "distributed"},
    "losses": {"trajectory", "models"},
    "sampling": {"trajectory", "models"},
    "checkpoints": {"distributed", "models"},
    "evaluation": {"trajectory", "scenes", "sampling", "distributed", "reports", "services"},
    "sweeps": {"distributed"},
    "services": set(),
    "recipe": {
        "trajectory",
        "scenes",
        "data",
        "distributed",
        "reports",
        "services",
        "evaluation",
        "experiment",
    },
    "parity": {"trajectory", "models", "losses", "sampling", "checkpoints"},
}
MAY_IMPORT["experiment"] = set(MAY_IMPORT) - {
    "reports",
    "services",
    "evaluation",
    "recipe",
    "parity",
    "sweeps",
}
MAY_IMPORT["training"] = {"trajectory", "models", "losses", "sampling", "data", "distributed", "reports"}
MAY_IMPORT["training"] |= {"experiment", "checkpoints", "evaluation", "services"}
MAY_IMPORT["weights"] = MAY_IMPORT["experiment"] - {"scenes", "losses"} | {"experiment", "training"}
MAY_IMPORT["capacity"] = {"trajectory", "models", "distributed", "reports", "training"}
MAY_IMPORT["lab"] = MAY_IMPORT["training"] - {"checkpoints", "services"} | {"training", "weights"}
MAY_IMPORT = {room: below | {"common"} for room, below in MAY_IMPORT.items()}
ENTRY_POINTS = {"train", "prepare", "sample", "evaluate", "convert", "verify_checkpoint", "compile", "sweep"}
FILES = sorted(PACKAGE.rglob("*.py"))
LOOP = "train._train"  # in sections to be read from top to bottom


def imported_rooms(path: pathlib.Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("process_gen"):
            names = [node.module] if "." in node.module else [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("process_gen.")]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names}
    return rooms


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_downward(room):
    for path in sorted((PACKAGE / room).rglob("*.py")):
        if path.name == "__main__.py":  # a command, which may use all
            continue
        upward = imported_rooms(path) - MAY_IMPORT[room] - {room}
        assert not upward, f"{path.relative_to(PACKAGE)} imports {sorted(upward)}"


def test_the_top_floor_holds_entry_points_alone():
    """Each of them is a command of its own, and `--help` names it."""
    assert {path.stem for path in PACKAGE.glob("*.py")} == ENTRY_POINTS | {"__init__"}
    for name in ENTRY_POINTS:
        assert f"python -m process_gen.{name}" in ast.get_docstring(
            ast.parse((PACKAGE / f"{name}.py").read_text())
        )


def test_every_folder_is_a_room_with_a_rule():
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_one_idea(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and f"{path.stem}.{node.name}" != LOOP:
            assert node.end_lineno - node.lineno < 80, f"{node.name} is longer than 80 lines"
    assert path.stem not in ("utils", "util", "helpers", "misc", "lib")
    assert "TODO" not in text and "FIXME" not in text


def test_the_page_says_what_a_room_may_import():
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    said = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, re.MULTILINE))
    assert {room: set(re.findall(r"\w+", below)) | {"common"} for room, below in said.items()} == MAY_IMPORT


def test_nothing_unpickles_or_evaluates_text():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec") and not name.startswith("pickle."), f"{path}: {name}"
            assert not (isinstance(node, ast.keyword) and node.arg == "allow_pickle"), path
