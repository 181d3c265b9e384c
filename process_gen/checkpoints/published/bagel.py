"""A published BAGEL as parameters of this project, and parameters as a published BAGEL."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from etils import epath

from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published import configs, rules, sources, tables, writing
from process_gen.checkpoints.published.flux import AutoencoderFiles, moves_of
from process_gen.checkpoints.published.folder import Published, position_table
from process_gen.checkpoints.published.pieces import Pieces, Progress, to_devices, to_host
from process_gen.models.config import FluxConfig, ModelConfig
from process_gen.models.spec import autoencoder_spec, model_spec

DTYPE = "float32"
"""Of parameters."""


def model_shapes(config: ModelConfig, with_vit: bool = True) -> dict[str, rules.Shape]:
    """Names and shapes of the parameters of `UnifiedModel`."""
    return shapes_of(model_spec(config, with_vit))


def autoencoder_shapes(config: FluxConfig) -> dict[str, rules.Shape]:
    """Names and shapes of the parameters of `FluxAutoencoder`."""
    return shapes_of(autoencoder_spec(config))


def shapes_of(spec: Any) -> dict[str, rules.Shape]:
    """Names and shapes of a tree, boxed or not."""
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


# -------------------------------------------------------------------------- out


def export_bagel(
    params: Any,
    autoencoder_params: Any,
    model: ModelConfig,
    folder: epath.PathLike,
    *,
    files: Mapping[str, configs.Json] | None = None,
    dtype: str | None = None,
    largest: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a folder that the published program, and `read_published`, can read.

    Args:
      params, autoencoder_params: trees, or a `sources.Source` each.
      model: their sizes.
      folder: made if need be.
      files: JSON files to write instead of made-up ones: those that came with the weights.
      dtype: of the tensors; None leaves them as they are.
      largest: bytes per file of the model, with an index beside them where it takes several. The published
        program reads one file, the default.
      progress: is told of bytes written.

    Raises:
      CheckpointMismatch: the parameters are not those of a BAGEL of these sizes.
      CheckpointError: the folder holds a model already.
    """
    source, coder = source_of(params), source_of(autoencoder_params)
    published, with_vit = as_published(model), any(name.startswith("vit/") for name in source.spec)
    moves = bagel_moves(published, with_vit)
    check_ours(source.spec, model_shapes(published, with_vit), "the model")
    coder_spec = autoencoder_shapes(published.flux)
    check_ours(coder.spec, coder_spec, "the autoencoder")
    tensors = sources.items(moves, source, dtype) + fixed_tables(
        published, with_vit, dtype or source.dtypes["embedding"]
    )
    writing.write(folder, "ema", sorted(tensors, key=lambda item: item.name), largest, progress)
    coder_moves = moves_of(published.flux, coder_spec, "flux")
    writing.write(folder, "ae", sources.items(coder_moves, coder, dtype), None, progress)
    for name, fields in (files or configs.write(published if with_vit else _blind(published))).items():
        (epath.Path(folder) / name).write_text(json.dumps(fields, indent=1))


def as_published(model: ModelConfig) -> ModelConfig:
    """The model, where the published program computes the same with its weights.

    Raises:
      CheckpointMismatch: it has something that the published program does not know.
    """
    wanted = dict(image_rope=0, latent_positions="sincos", prediction="velocity", time_scale=1.0)
    wanted |= dict(qkv_bias=True, autoencoder="flux")
    for field, value in wanted.items():
        if getattr(model, field) != value:
            raise CheckpointMismatch(
                f"model.{field} is {getattr(model, field)!r}, published models have {value!r}: this one "
                "cannot be exported in their layout"
            )
    return model


def _blind(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(model, vit=None)


def source_of(params: Any) -> sources.Source:
    """A tree as a source; a source as it is."""
    return params if hasattr(params, "spec") else sources.TreeArrays(nn.meta.unbox(params))


def check_ours(found: rules.Spec, wanted: rules.Spec, what: str) -> None:
    """Compares parameters with what the sizes say.

    Raises:
      CheckpointMismatch: names or shapes differ.
    """
    odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if odd:
        have, want = found.get(odd[0], "missing"), wanted.get(odd[0], "no such weights")
        raise CheckpointMismatch(
            f"the parameters of {what} do not fit its sizes: {odd[0]} is {have}, the sizes say {want} "
            f"({len(odd)} of {len(wanted)} differ)"
        )


def fixed_tables(model: ModelConfig, with_vit: bool, dtype: Any) -> list[writing.Item]:
    """The fixed tables, which published files hold."""
    sides = {"latent": model.max_latent_side} | ({"vit": model.vit.max_side} if with_vit else {})
    return [
        writing.Item.of(name, position_table(model.width, sides[part]).astype(jnp.dtype(dtype)))
        for name, part in tables.BAGEL_TABLES.items()
        if part in sides
    ]
