"""A published BAGEL as parameters of this project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from process_gen.checkpoints import arrays
from process_gen.checkpoints.published import rules, tables
from process_gen.checkpoints.published.flux import AutoencoderFiles, moves_of
from process_gen.checkpoints.published.folder import Published
from process_gen.checkpoints.published.pieces import Pieces, Progress, to_devices, to_host
from process_gen.models.config import FluxConfig, ModelConfig
from process_gen.models.spec import autoencoder_spec, model_spec

DTYPE = "float32"
"""Of parameters."""


def model_shapes(config: ModelConfig, with_vit: bool = True) -> dict[str, rules.Shape]:
    """Names and shapes of the parameters of `UnifiedModel`."""
    return _shapes(model_spec(config, with_vit))


def autoencoder_shapes(config: FluxConfig) -> dict[str, rules.Shape]:
    """Names and shapes of the parameters of `FluxAutoencoder`."""
    return _shapes(autoencoder_spec(config))


def _shapes(spec: Any) -> dict[str, rules.Shape]:
    return {name: tuple(x.shape) for name, x in arrays.named(nn.meta.unbox(spec)).items()}


def bagel_moves(config: ModelConfig, with_vit: bool = True) -> list[rules.Move]:
    """Every published tensor of a model of these sizes, and where it lies in ours.

    Raises:
      CheckpointMismatch: the model has something that BAGEL has not.
    """
    return rules.expand(tables.BAGEL, model_shapes(config, with_vit))


def model_pieces(published: Published, with_vit: bool | None = None, dtype: str | None = DTYPE) -> Pieces:
    """The model's arrays, once names and shapes are known to be right on both sides.

    Args:
      published: from `read_published`.
      with_vit: whether the parameters are to hold the ViT and its connector; if the model has one by default.
      dtype: of the arrays; None leaves them as they are stored.

    Raises:
      CheckpointMismatch: names or shapes differ.
    """
    with_vit = published.has_vit if with_vit is None else with_vit and published.has_vit
    moves = bagel_moves(published.model, with_vit)
    ignored = (*tables.BAGEL_TABLES, *(() if with_vit else tables.BAGEL_VIT))
    found = {name: entry.shape for name, entry in published.tensors.items()}
    rules.check(moves, found, published.tensors.place, ignored)
    return Pieces(moves, published.tensors, model_shapes(published.model, with_vit), dtype)


def autoencoder_pieces(files: AutoencoderFiles, dtype: str | None = DTYPE) -> Pieces:
    """The autoencoder's arrays, checked likewise."""
    spec = autoencoder_shapes(files.config)
    moves = moves_of(files.config, spec, files.naming)
    rules.check(moves, {name: entry.shape for name, entry in files.tensors.items()}, files.tensors.place)
    return Pieces(moves, files.tensors, spec, dtype)


def import_bagel(
    published: Published,
    with_vit: bool | None = None,
    dtype: str | None = DTYPE,
    shardings: Mapping[str, Any] | None = None,
    autoencoder_shardings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of `UnifiedModel` and of `FluxAutoencoder`.

    Args:
      published: from `read_published`.
      with_vit, dtype: see `model_pieces`.
      shardings: by name (`a/b/c`) of every parameter: each comes as a `jax.Array` of which a host has read
        only what its devices hold. Without, they are NumPy arrays.
      autoencoder_shardings: the same for the autoencoder.
      progress: is told of bytes.

    Raises:
      CheckpointMismatch: names or shapes differ.
    """
    model = model_pieces(published, with_vit, dtype)
    coder = autoencoder_pieces(published.autoencoder, dtype)
    return _made(model, shardings, progress), _made(coder, autoencoder_shardings, progress)


def _made(pieces: Pieces, shardings: Mapping[str, Any] | None, progress: Progress | None) -> dict[str, Any]:
    return to_host(pieces, progress) if shardings is None else to_devices(pieces, shardings, progress)
