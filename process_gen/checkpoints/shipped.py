"""Finds the weights that come with the package."""

from __future__ import annotations

import importlib.resources
import os

from process_gen.checkpoints import load
from process_gen.checkpoints.errors import CheckpointNotFound

SHIPPED = {"scenes": "scenes_s.safetensors", "hung": "hung_s.safetensors"}
"""Name that may be given instead of a path -> file in `assets`."""


def shipped_weights(name: str = "scenes") -> str:
    """The path of shipped weights, by a key of `SHIPPED`; CheckpointNotFound where none are installed."""
    asset = importlib.resources.files("process_gen") / "assets" / SHIPPED[name]
    if not asset.is_file():
        raise CheckpointNotFound(
            f"this installation ships no weights ({asset}): train a model with python -m process_gen.train "
            "--config=configs/scenes.py:quick --workdir=runs/quick and pass --workdir=runs/quick"
        )
    return str(asset)


def located(path: str | os.PathLike[str]) -> str:
    """`path`, or where shipped weights are if it is a key of `SHIPPED` and no weights here are called so."""
    name = os.fspath(path)
    if name not in SHIPPED:
        return name
    place = load.absolute(name)
    ours = place.is_file() or load.steps(place / load.FOLDER) or load.steps(place)
    return name if ours or (place / "llm_config.json").is_file() else shipped_weights(name)
