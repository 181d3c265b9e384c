"""Models that start from weights of any origin: published ones, or those of another run.

Published weights have rows for tokens that their tokenizer does not name, and nobody has trained those rows:
they are all alike. Tokens of ours that get such ids (`<ins>` and its like, which carry every decision about
what follows what) start as the mean of the rows of the words that they stand for, in the embedding and in the
head, as they are read; the files stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
"""How a model is computed; the ViT, which may be left out (shapes tell its sizes); adapters."""
ROWS = {"embedding": 0, "head/kernel": 1}
"""What has a line per token, and along which axis."""


def start_from(
    state: TrainState, model: UnifiedModel, path: str, tokenizer: Tokenizer | None = None
) -> TrainState:
    """The state of a run that has not begun, with weights from `path` on the devices that it names.

    Every device reads its own part, array by array, once the state's random weights are gone. Adapters that
    the weights do not have, or have of another rank or alpha, start as they are, and those are merged.

    Raises:
      CheckpointError: nothing there, broken, or see `placed`.
    """
    weights = read_weights(path, vit=bool(model.layout.vit_tokens))
    params, autoencoder = _filled(weights, model.config, tokenizer, state.params, state.autoencoder)
    whole = arrays.flatten(params)
    copies = {
        name: jax.device_put(jnp.copy(whole[name]), old.sharding)
        for name, old in arrays.flatten(state.ema).items()
    }
    ema = arrays.unflatten_like(state.ema, copies)
    return state.replace(params=params, ema=ema, autoencoder=autoencoder)


def placed(
    weights: Weights,
    model: UnifiedModel,
    tokenizer: Tokenizer | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float32",
) -> tuple[Any, Any]:
    """Weights of any origin for a model: its parameters, and those of its autoencoder (None without).

    Args:
      weights: from `read_weights`.
      model: the modules.
      tokenizer: the one that the model is used with.
      mesh: devices that they are spread over, as in training, of which each reads its own part; the default
        device without one.
      dtype: of the parameters, but for norms, which stay in float32, and the autoencoder's.

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
    """Shapes of parameters in another dtype; what a norm multiplies with and adds stays as it is."""
    if not isinstance(params, dict):
        return params.update(dtype=dtype)
    return {name: part if "scale" in params else _in_dtype(part, dtype) for name, part in params.items()}


def _filled(
    weights: Weights, config: ModelConfig, tokenizer: Tokenizer | None, params: Any, autoencoder: Any
) -> tuple[Any, Any]:
    """Weights in the structures of `params` and `autoencoder`, which hold arrays to be replaced or shapes.

    Parts of the weights that the model does without (the ViT, where the layout has no room for its tokens)
    stay where they are; so do adapters of `params` for which the weights have none.
    """
    if weights.model is None or weights.params is None:
        raise CheckpointMismatch(f"{weights.source} holds no model to start from")
    _check_sizes(config, weights.model, weights.source)
    if tokenizer is not None:
        vocabulary.check_same(tokenizer, weights.metadata, weights.source)
    source = _trained(_same_adapters(weights, config, params), weights, tokenizer)
    params = _read(params, source, weights.source, (r"(vit|connector)/.*",))
    if autoencoder is None:
        return params, None
    if weights.autoencoder is None:
        raise CheckpointMismatch(f"{weights.source} holds no autoencoder, and the model needs one")
    return params, _read(autoencoder, weights.autoencoder("float32"), weights.source)


def _check_sizes(model: ModelConfig, found: ModelConfig, source: str) -> None:
    """Raises CheckpointMismatch, which names the field, for weights of other sizes."""
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(model, field.name), getattr(found, field.name)
        if field.name not in FREE and ours != theirs:
            raise CheckpointMismatch(
                f"the weights of {source} are for a model with {field.name} {theirs!r}, the config has "
                f"{ours!r}: set config.model.{field.name}, or choose another config.model.size"
            )


def _same_adapters(weights: Weights, config: ModelConfig, params: Any) -> Source:
    """The parameters, with adapters where the weights have those of the model, else merged."""
    if config.lora.rank and (adapted := weights.adapted):
        source = adapted.params("float32")
        found, wanted = (
            {name: shape for name, shape in shapes.items() if is_adapter(name)}
            for shapes in (source.spec, sources.shapes_of(params))
        )
        if found == wanted and adapted.lora.scale == config.lora.scale:
            return source
        logging.info("%s: adapters of another kind, which are merged; new ones start", weights.source)
    return weights.params("float32")


def _trained(source: Source, weights: Weights, tokenizer: Tokenizer | None) -> Source:
    """The parameters; rows of tokens that nobody has trained are those of their words."""
    new = {} if tokenizer is None else vocabulary.untrained(tokenizer, weights.metadata)
    if not new:
        return source
    logging.info("%s: tokens that start as the mean of their words: %s", weights.source, ", ".join(new))
    return Replaced(source, {name: (axis, _means(source, name, axis, new)) for name, axis in ROWS.items()})


def _means(
    source: Source, name: str, axis: int, new: Mapping[str, tuple[int, list[int]]]
) -> dict[int, np.ndarray]:
    """By id of a token, the mean of the lines of its words, float32."""

    def line(number: int) -> np.ndarray:
        one = slice(number, number + 1)
        return source.read(name, (one,) if axis == 0 else (slice(None), one)).reshape(-1).astype(np.float32)

    return {number: np.mean([line(word) for word in words], axis=0) for number, words in new.values()}


def _read(tree: Any, source: Source, name: str, unused: tuple[str, ...] = ()) -> Any:
    """Arrays of a source in the structure of `tree`, whose arrays are given up as they are replaced."""
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
            shape, place, lambda box, key=key, dtype=dtype: source.read(key, box).astype(dtype)
        )
    return arrays.unflatten_like(tree, made)
