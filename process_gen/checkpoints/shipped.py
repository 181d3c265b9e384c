"""The weights that come with the package; this file imports nothing heavy, as configs name them."""

from __future__ import annotations

import importlib.resources

from process_gen.checkpoints.errors import CheckpointNotFound

SHIPPED = "scenes_s.safetensors"


def shipped_weights() -> str:
    """The file of the weights that come with the package.

    Raises:
      CheckpointNotFound: this installation has none.
    """
    asset = importlib.resources.files("process_gen") / "assets" / SHIPPED
    if not asset.is_file():
        raise CheckpointNotFound(
            f"this installation ships no weights ({asset}): train a model with python -m process_gen.train "
            "--config=configs/scenes.py:quick --workdir=runs/quick and pass --workdir=runs/quick"
        )
    return str(asset)
