"""Starts models from weights of any origin: published ones, or those of another run.

In published weights, embedding and head have rows for ids that their tokenizer does not use. These rows are
untrained and all alike. Our control tokens (`<ins>` and others, with which the model decides what comes next)
get such ids. While the weights are read, the row of such a token is replaced by the mean of the rows of the
words that it stands for; the files stay as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published import sources
from process_gen.checkpoints.published.adapters import is_adapter
from process_gen.checkpoints.published.sources import Replaced, Source
from process_gen.data.tokenizers import Tokenizer
from process_gen.distributed import sharding
from process_gen.experiment import vocabulary
from process_gen.models.config import ModelConfig
from process_gen.models.spec import autoencoder_spec, model_spec
from process_gen.models.unified import UnifiedModel
from process_gen.training.step import TrainState
from process_gen.weights.origin import Weights, read_weights

FREE = ("dtype", "attention", "remat", "scan_unroll", "logit_chunk", "vit", "lora")
"""Fields in which a model may differ from the weights: how it is computed, adapters, and the ViT.

The ViT may be left out; where it is not, its sizes are checked by the shapes of its arrays.
"""
ROWS = {"embedding": 0, "head/kernel": 1}
"""Parameters with a row per token -> the axis of the tokens."""


def weights_for(model: UnifiedModel, path: str, tokenizer: Tokenizer | None = None) -> Weights:
    """The weights in `path` for a model to start from; what describes them is read and checked.

    Raises:
      CheckpointError: nothing there, broken, of another model, or of another tokenizer than the one given.
    """
    weights = read_weights(path, vit=bool(model.layout.vit_tokens))
    _check(weights, model.config, tokenizer)
    return weights


def start_from(
    state: TrainState, model: UnifiedModel, weights: Weights, tokenizer: Tokenizer | None = None
) -> TrainState:
    """Replaces the weights of a state before its first step by `weights`; its shardings stay.

    Array by array the random weights are deleted, and every device reads its own part of the new ones. The
    EMA starts as a copy. Where the weights have no adapters, or some of another rank or alpha (which are
    merged), those of the state keep their initial values.

    Raises:
      CheckpointError: see `load_onto_devices`.
    """
    params, autoencoder = _filled(weights, model.config, tokenizer, state.params, state.autoencoder)
    whole = arrays.flatten(params)
    copies = {
        name: jax.device_put(jnp.copy(whole[name]), old.sharding)
        for name, old in arrays.flatten(state.ema).items()
    }
    ema = arrays.unflatten_like(state.ema, copies)
    return state.replace(params=params, ema=ema, autoencoder=autoencoder)


def load_onto_devices(
    weights: Weights,
    model: UnifiedModel,
    tokenizer: Tokenizer | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float32",
) -> tuple[Any, Any]:
    """Loads weights of any origin: a model's parameters, and those of its autoencoder (None without one).

    Args:
      tokenizer: the one that the model is used with.
      mesh: devices to shard them over, as in training; each reads its own part. None for the default device.
      dtype: of the parameters; norms and the autoencoder stay in float32.

    Raises:
      MeshError: an array, or the heads, do not divide over the mesh.
      CheckpointError: broken, not the weights of this model, or of another tokenizer than the one given.
    """
    config = model.config
    spec = {"params": model_spec(config, with_vit=bool(model.layout.vit_tokens))}
    if config.autoencoder == "flux":
        spec["autoencoder"] = autoencoder_spec(config.flux)
    shapes = nn.meta.unbox(spec)
    if mesh is not None:
        sharding.heads_divide({"model.kv_heads": config.kv_heads, "model.heads": config.heads}, mesh)
        places = sharding.state_shardings(spec, mesh)
        shapes = jax.tree.map(lambda x, place: x.update(sharding=place), shapes, places)
    params = _in_dtype(shapes["params"], jnp.dtype(dtype))
    return _filled(weights, config, tokenizer, params, shapes.get("autoencoder"))


def _in_dtype(params: Any, dtype: Any) -> Any:
    """Abstract parameters in another dtype; scales and biases of norms keep theirs."""
    if not isinstance(params, dict):
        return params.update(dtype=dtype)
    return {name: part if "scale" in params else _in_dtype(part, dtype) for name, part in params.items()}


def _filled(
    weights: Weights, config: ModelConfig, tokenizer: Tokenizer | None, params: Any, autoencoder: Any
) -> tuple[Any, Any]:
    """Weights in the structures of `params` and `autoencoder`, whose leaves are arrays to replace, or shapes.

    A ViT of the weights is not read where the model has none. Adapters of `params` that the weights lack
    keep their arrays.
    """
    _check(weights, config, tokenizer)
    source = _trained(_same_adapters(weights, config, params), weights, tokenizer)
    params = _read(params, source, weights.source, (r"(vit|connector)/.*",))
    if autoencoder is None:
        return params, None
    return params, _read(autoencoder, weights.autoencoder, weights.source)


def _check(weights: Weights, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
    """Raises CheckpointMismatch for weights of other sizes or another tokenizer, or that lack a part."""
    if weights.params is None or weights.model is None:
        raise CheckpointMismatch(f"{weights.source} holds no model to start from")
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(config, field.name), getattr(weights.model, field.name)
        if field.name not in FREE and ours != theirs:
            raise CheckpointMismatch(
                f"the weights of {weights.source} are for a model with {field.name} {theirs!r}, the config "
                f"has {ours!r}: set config.model.{field.name}, or choose another config.model.size"
            )
    if config.autoencoder == "flux" and weights.autoencoder is None:
        raise CheckpointMismatch(f"{weights.source} holds no autoencoder, and the model needs one")
    if tokenizer is not None:
        vocabulary.check_same(tokenizer, weights.metadata, weights.source)


def _same_adapters(weights: Weights, config: ModelConfig, params: Any) -> Source:
    """The parameters of the weights: with their adapters if the model has the same ones, else merged."""
    if config.lora.rank and (adapted := weights.adapted):
        source = adapted.params.in_dtype("float32")
        found, wanted = (
            {name: shape for name, shape in shapes.items() if is_adapter(name)}
            for shapes in (source.spec, sources.shapes_of(params))
        )
        if found == wanted and adapted.lora.scale == config.lora.scale:
            return source
        logging.info("%s: adapters of another kind, which are merged; new ones start", weights.source)
    return weights.params.in_dtype("float32")


def _trained(source: Source, weights: Weights, tokenizer: Tokenizer | None) -> Source:
    """The parameters, with the rows of untrained tokens replaced by the means of those of their words."""
    new = {} if tokenizer is None else vocabulary.untrained(tokenizer, weights.metadata)
    if not new:
        return source
    logging.info("%s: tokens that start as the mean of their words: %s", weights.source, ", ".join(new))

    def line(name: str, axis: int, number: int) -> np.ndarray:
        return source.read(name, (slice(None),) * axis + (slice(number, number + 1),)).reshape(-1)

    def means(name: str, axis: int) -> dict[int, np.ndarray]:
        rows = {number: [line(name, axis, word) for word in words] for number, words in new.values()}
        return {number: np.mean(found, axis=0) for number, found in rows.items()}

    return Replaced(source, {name: (axis, means(name, axis)) for name, axis in ROWS.items()})


def _read(tree: Any, source: Source, name: str, unused: tuple[str, ...] = ()) -> Any:
    """Reads a source into the structure of `tree`; each array of `tree` is deleted before it is replaced."""
    wanted = arrays.flatten(tree)
    made = {
        key: x
        for key, x in wanted.items()
        if isinstance(x, jax.Array) and is_adapter(key) and key not in source.spec
    }
    wanted = {key: x for key, x in wanted.items() if key not in made}
    shapes = {key: x.shape for key, x in wanted.items()}
    arrays.check(source.spec, shapes, f"the weights in {name} do not fit their config", unused)
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    for key, array in wanted.items():
        shape, dtype, place = array.shape, array.dtype, array.sharding or default
        if isinstance(array, jax.Array):
            array.delete()
        made[key] = jax.make_array_from_callback(
            shape, place, lambda box, key=key, dtype=dtype: source.read(key, box).astype(dtype, copy=False)
        )
    return arrays.unflatten_like(tree, made)
