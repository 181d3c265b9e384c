"""Notebooks from their sources: `python notebooks/build.py` writes NAME.ipynb for every `# %%` file here.

A source is Python in cells: `# %%` begins one of code, `# %% [markdown]` one of text behind `# `, and
`# %% install` stands for the cell of install.py, which all of them begin with. Outputs are not kept.
"""

from __future__ import annotations

import json
import pathlib

FOLDER = pathlib.Path(__file__).parent
METADATA = {
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[pathlib.Path]:
    """The files in cells."""
    return [path for path in sorted(FOLDER.glob("*.py")) if path.read_text().startswith("# %%")]


def notebook(text: str) -> str:
    """The JSON of a notebook, from a source."""
    cells = []
    for number, part in enumerate(text.removeprefix("# %%").split("\n# %%")):
        kind, _, body = part.partition("\n")
        kind, body = kind.strip(), body.strip("\n")
        if kind == "install":
            body = (FOLDER / "install.py").read_text().strip("\n")
        cell = {"cell_type": "code", "id": f"cell-{number}", "metadata": {}}
        if kind == "[markdown]":
            cell["cell_type"] = "markdown"
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))
        else:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": body.splitlines(keepends=True)})
    made = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for source in sources():
        source.with_suffix(".ipynb").write_text(notebook(source.read_text()))
        print(source.with_suffix(".ipynb"))
