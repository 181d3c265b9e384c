"""The quickstart notebook runs from top to bottom."""

from __future__ import annotations

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

PATH = pathlib.Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(PATH, as_version=4)


def test_the_file_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@pytest.mark.slow  # it compiles two train steps and a sampler, as a reader of the page would
def test_the_notebook_runs(notebook):
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": PATH.parent}}
    )
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 4  # the teacher, the losses, a sampled trajectory, the losses with one more
    text = "".join(out.get("text", "") for out in outputs)
    assert "judge: right" in text and "stopped by the" in text
