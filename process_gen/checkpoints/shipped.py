"""Finds the weights that come with the package; imports nothing heavy, because configs import it."""

from __future__ import annotations

import importlib.resources
import os

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
    """`path`, or where shipped weights are if it is a key of `SHIPPED` and nothing here is called so."""
    name = os.fspath(path)
    return shipped_weights(name) if name in SHIPPED and not os.path.exists(name) else name
