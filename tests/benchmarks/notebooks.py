"""Every notebook in an empty environment, installed by its own first cell; when its first picture is there.

    python tests/benchmarks/notebooks.py --pythons=python3.11,python3.13 --notebooks=quickstart,losses

For each a new virtual environment with a kernel (ipykernel), in a new folder that holds the notebook and the
project's wheel. A table has the seconds until the package is installed, until the first picture or coloured
batch, until the first curve, and until the end. A notebook that fails is a line, and exit code 1.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("quickstart", "trajectories", "losses", "your_data", "sharding")
CURVES = ("losses.png", "compare(", "train_afresh(", "curve")
"""What stands in a cell whose picture is one of losses."""


def run(notebook: pathlib.Path) -> dict:
    """Runs a notebook in this environment; seconds by what was there, and the error if there was one."""
    import nbformat
    from nbclient import NotebookClient

    begun, found = time.monotonic(), {}

    class Client(NotebookClient):
        """Notes when cells show something."""

        def process_message(self, msg, cell, cell_index):
            data = msg["content"].get("data", {})
            shown = "image/png" in data or "<table" in data.get("text/html", "")
            shown |= "data:image/png" in data.get("text/html", "")
            if shown:
                kind = "curve" if any(word in cell.source for word in CURVES) else "picture"
                found.setdefault(kind, time.monotonic() - begun)
            return super().process_message(msg, cell, cell_index)

    def after(cell, cell_index, execute_reply):
        found.setdefault("installed", time.monotonic() - begun)

    book = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": notebook.parent}}
    client = Client(book, timeout=1800, kernel_name="python3", resources=resources, on_cell_executed=after)
    try:
        client.execute()
    except Exception as error:
        found["error"] = str(error)[-400:]
    return found | {"end": time.monotonic() - begun}


def main() -> None:
    """Builds the wheel, runs each notebook with each Python, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pythons", default=sys.executable, help="interpreters, with commas")
    parser.add_argument("--notebooks", default=",".join(NAMES))
    parser.add_argument("--run", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(args.run)))
        return
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "source"  # a build leaves files where it is made
        shutil.copytree(HERE, source, ignore=shutil.ignore_patterns(".git", "runs", "data_sets", "build"))
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}"]
        subprocess.run([*pip, str(source)], check=True)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        kinds = ("installed", "picture", "curve", "end")
        print(
            "| Python | notebook | installed | first picture | first curve | end |",
            "| --- " * 6 + "|",
            sep="\n",
        )
        for python in args.pythons.split(","):
            for name in args.notebooks.split(","):
                found = in_empty_environment(python, name, wheel)
                failed |= "error" in found
                cells = (f"{found[kind]:.0f} s" if kind in found else "" for kind in kinds)
                print(f"| {python} | {name} |", " | ".join(cells), "|", found.get("error", ""), flush=True)
    sys.exit(failed)


def in_empty_environment(python: str, name: str, wheel: pathlib.Path) -> dict:
    """Runs a notebook with an interpreter, in a virtual environment that has a kernel and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        subprocess.run([python, "-m", "venv", place / "venv"], check=True)
        own = place / "venv" / "bin" / "python"
        subprocess.run([own, "-m", "pip", "install", "--quiet", "ipykernel", "nbclient"], check=True)
        for source in (wheel, HERE / "notebooks" / f"{name}.ipynb"):
            shutil.copy(source, place)
        command = [own, __file__, f"--run={place / name}.ipynb"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=place)
        if done.returncode:
            return {"error": done.stderr[-400:]}
        return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
