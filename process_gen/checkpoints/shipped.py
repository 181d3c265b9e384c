"""The weights that come with the package; this file imports nothing heavy, as configs name them."""

from __future__ import annotations

import importlib.resources

from process_gen.checkpoints.errors import CheckpointNotFound

SHIPPED = {"scenes": "scenes_s.safetensors", "hung": "hung_s.safetensors"}
"""Files in `assets` by the name that stands for them where a path is asked for."""


def shipped_weights(name: str = "scenes") -> str:
    """The file of weights that come with the package.

    Raises:
      CheckpointNotFound: this installation has none.
    """
    asset = importlib.resources.files("process_gen") / "assets" / SHIPPED[name]
    if not asset.is_file():
        raise CheckpointNotFound(
            f"this installation ships no weights ({asset}): train a model with python -m process_gen.train "
            "--config=configs/scenes.py:quick --workdir=runs/quick and pass --workdir=runs/quick"
        )
    return str(asset)
