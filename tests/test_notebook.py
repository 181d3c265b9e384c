"""The notebooks are those of their sources, and run from top to bottom."""

from __future__ import annotations

import importlib.util
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
PICTURES = {"quickstart": 4, "losses": 0, "trajectories": 5, "your_data": 3, "sharding": 0}
"""PNG outputs: pictures of trajectories and of losses; `lab` shows HTML."""
SAID = {
    "quickstart": ("judge: right", "stopped by the", "trajectory 0"),
    "losses": ("trajectory 0", "late_l1 of sketch", "95% over seeds", "data:image/png"),
    "trajectories": (
        "the judge says",
        "1 plan | <ins>",
        "it says:",
        "it goes on with:",
        "turns as planned: 2",
    ),
    "your_data": (
        '"prompt": "a blue square over red"',
        "turns of a trajectory: 2: 20",
        "trajectory 0",
        "after",
    ),
    "sharding": ("8 devices", "gate_proj/kernel", "all-gather", "all-reduce"),
}


def build():
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_is_what_its_source_says_and_holds_no_outputs(name):
    written = (FOLDER / f"{name}.ipynb").read_text()
    assert written == build().notebook((FOLDER / f"{name}.py").read_text()), "python notebooks/build.py"
    notebook = nbformat.reads(written, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert code[0].source == (FOLDER / "install.py").read_text().strip("\n")


def test_every_source_is_run_by_a_test():
    assert {path.stem for path in build().sources()} == set(PICTURES)


@pytest.mark.slow  # it compiles train steps and a sampler, as a reader of the page would
@pytest.mark.parametrize(
    "name",
    [name if name == "quickstart" else pytest.param(name, marks=pytest.mark.long) for name in PICTURES],
)
def test_a_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("PROCESS_GEN_SMALL", "1")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": FOLDER}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert len([out for out in outputs if "image/png" in out.get("data", {})]) == PICTURES[name]
    text = "".join(out.get("text", "") + out.get("data", {}).get("text/html", "") for out in outputs)
    assert all(said in text for said in SAID[name])
