"""Training that starts from weights instead of at random: published ones, or those of another run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published.sources import Source
from process_gen.models.config import ModelConfig
from process_gen.models.unified import UnifiedModel
from process_gen.train_step import TrainState
from process_gen.weights import read_weights

FREE = ("dtype", "attention", "remat", "remat_steps", "scan_unroll", "vit")
"""Fields that say how a model is computed; and the ViT, which may be left out (shapes tell its sizes)."""


def start_from(state: TrainState, model: UnifiedModel, path: str) -> TrainState:
    """The state of a run that has not begun, with weights from `path` on the devices that it names.

    Every device reads its own part, array by array, once the state's random
    weights are gone. Parts of the weights that the model does without (the ViT,
    where the layout has no room for its tokens) stay where they are.

    Raises:
      CheckpointError: nothing there, broken, or not the weights of this model.
    """
    weights = read_weights(path, vit=bool(model.layout.vit_tokens))
    if weights.model is None or weights.params is None:
        raise CheckpointMismatch(f"{weights.source} holds no model to start from")
    check_sizes(model.config, weights.model, weights.source)
    params = filled(state.params, weights.params("float32"), weights.source)
    autoencoder = state.autoencoder
    if autoencoder is not None:
        if weights.autoencoder is None:
            raise CheckpointMismatch(f"{weights.source} holds no autoencoder; the model needs one")
        autoencoder = filled(autoencoder, weights.autoencoder("float32"), weights.source)
    ema = jax.tree.map(lambda old, new: jnp.copy(new), state.ema, params)
    return state.replace(params=params, ema=ema, autoencoder=autoencoder)


def check_sizes(model: ModelConfig, found: ModelConfig, source: str) -> None:
    """Refuses weights of other sizes.

    Raises:
      CheckpointMismatch: the message names the field.
    """
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(model, field.name), getattr(found, field.name)
        if field.name not in FREE and ours != theirs:
            raise CheckpointMismatch(
                f"the weights of {source} are for a model with {field.name} {theirs!r}, the config has "
                f"{ours!r}: set config.model.{field.name}, or choose another config.model.size"
            )


def filled(tree: Any, source: Source, name: str) -> Any:
    """Arrays of a source in the structure, and on the devices, of `tree`, whose own arrays are given up.

    Raises:
      CheckpointMismatch: an array is missing, or has another shape.
    """
    made, wanted = {}, arrays.named(tree)
    for key, array in wanted.items():
        shape = tuple(source.spec.get(key, ()))
        if key not in source.spec or shape != array.shape:
            found = f"has shape {list(shape)}" if key in source.spec else "is missing"
            raise CheckpointMismatch(f"{key} {found} in {name}, the model has {list(array.shape)}")
    for key, array in wanted.items():
        spec = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
        array.delete()

        def read(box, key=key, dtype=spec.dtype):
            return source.read(key, box).astype(dtype)

        made[key] = jax.make_array_from_callback(spec.shape, spec.sharding, read)
    return arrays.unnamed(tree, made)
