"""Models that start from weights of any origin: published ones, or those of another run.

Published weights have rows for tokens that their tokenizer does not name, and nobody
has trained those rows: they are all alike. Tokens of ours that get such ids (`<ins>`
and its like, which carry every decision about what follows what) start as the mean of
the rows of the words that they stand for, in the embedding and in the head, as they
are read; the files stay as they are. It takes reading a dozen lines of either matrix,
once, and nothing while training.
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
from process_gen.checkpoints.published.sources import Replaced, Source
from process_gen.data.tokenizers import Tokenizer
from process_gen.distributed import sharding
from process_gen.experiment import vocabulary
from process_gen.models.autoencoder import random_weights
from process_gen.models.config import ModelConfig
from process_gen.models.unified import UnifiedModel
from process_gen.training.step import TrainState
from process_gen.trajectory.batch import Batch
from process_gen.weights.origin import Weights, read_weights

FREE = ("dtype", "attention", "remat", "scan_unroll", "logit_chunk", "vit")
"""Fields that say how a model is computed; and the ViT, which may be left out (shapes tell its sizes)."""


def weights_of(model: UnifiedModel, mesh: Mesh | None = None, dtype: str = "float32") -> tuple[Any, Any]:
    """The parameters of a model, and those of its autoencoder (None without), as shapes and dtypes.

    Args:
      model: the modules.
      mesh: devices that they are spread over, as in training; the shapes have shardings then.
      dtype: of the parameters, but for norms, which stay in float32, and the autoencoder's.

    Raises:
      MeshError: an array, or the heads, do not divide over the mesh.
    """

    def init(key):
        params = model.init(key, _blank(model))["params"]
        return {"params": params, "autoencoder": random_weights(model.config, key)}

    if mesh is None:
        spec = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    else:
        sizes = model.config
        sharding.heads_divide({"model.kv_heads": sizes.kv_heads, "model.heads": sizes.heads}, mesh)
        spec = sharding.abstract_state(init, jax.random.key(0), mesh=mesh)
    return _in_dtype(spec["params"], jnp.dtype(dtype)), spec["autoencoder"]


def _in_dtype(params: Any, dtype: Any) -> Any:
    """Shapes of parameters in another dtype; what a norm multiplies with and adds stays as it is."""
    if not isinstance(params, dict):
        return params.update(dtype=dtype)
    return {name: part if "scale" in params else _in_dtype(part, dtype) for name, part in params.items()}


def read_for(
    model: UnifiedModel,
    path: str,
    which: str = "ema",
    tokenizer: Tokenizer | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float32",
) -> tuple[Any, Any]:
    """Weights of any origin for a model: its parameters, and those of its autoencoder (None without).

    Over a `mesh`, each device reads its own part; for `dtype` see `weights_of`.

    Raises:
      CheckpointError: nothing there, broken, not the weights of this model, or of another tokenizer than
        the one given.
    """
    spec, coder = weights_of(model, mesh, dtype)
    weights = _fitting(model, path, which, tokenizer)
    params = filled(spec, _params(weights, tokenizer), weights.source)
    return params, None if coder is None else filled(coder, _autoencoder(weights), weights.source)


def _blank(model: UnifiedModel) -> Batch:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), Batch.spec(model.layout, 1))


def _fitting(
    model: UnifiedModel, path: str, which: str = "ema", tokenizer: Tokenizer | None = None
) -> Weights:
    """The weights at `path`, once they are known to be those of a model of these sizes, and their ids to mean
    what the tokenizer says."""
    weights = read_weights(path, vit=bool(model.layout.vit_tokens), which=which)
    if weights.model is None or weights.params is None:
        raise CheckpointMismatch(f"{weights.source} holds no model to start from")
    check_sizes(model.config, weights.model, weights.source)
    if tokenizer is not None:
        vocabulary.check_same(tokenizer, weights.metadata, weights.source)
    return weights


def _params(weights: Weights, tokenizer: Tokenizer | None) -> Source:
    """The parameters; rows of tokens that nobody has trained are those of their words."""
    source = weights.params("float32")
    new = {} if tokenizer is None else vocabulary.untrained(tokenizer, weights.metadata)
    if not new:
        return source
    logging.info("%s: tokens that start as the mean of their words: %s", weights.source, ", ".join(new))
    return Replaced(source, {name: (axis, _means(source, name, axis, new)) for name, axis in ROWS.items()})


ROWS = {"embedding": 0, "head/kernel": 1}
"""What has a line per token, and along which axis."""


def _means(
    source: Source, name: str, axis: int, new: Mapping[str, tuple[int, list[int]]]
) -> dict[int, np.ndarray]:
    """By id of a token, the mean of the lines of its words, float32."""

    def line(number: int) -> np.ndarray:
        one = slice(number, number + 1)
        return source.read(name, (one,) if axis == 0 else (slice(None), one)).reshape(-1).astype(np.float32)

    return {number: np.mean([line(word) for word in words], axis=0) for number, words in new.values()}


def _autoencoder(weights: Weights) -> Source:
    if weights.autoencoder is None:
        raise CheckpointMismatch(f"{weights.source} holds no autoencoder, and the model needs one")
    return weights.autoencoder("float32")


def start_from(
    state: TrainState, model: UnifiedModel, path: str, tokenizer: Tokenizer | None = None
) -> TrainState:
    """The state of a run that has not begun, with weights from `path` on the devices that it names.

    Every device reads its own part, array by array, once the state's random
    weights are gone. Parts of the weights that the model does without (the ViT,
    where the layout has no room for its tokens) stay where they are.

    Raises:
      CheckpointError: nothing there, broken, not the weights of this model, or of another tokenizer than
        the one given.
    """
    weights = _fitting(model, path, tokenizer=tokenizer)
    params = filled(state.params, _params(weights, tokenizer), weights.source)
    autoencoder = state.autoencoder
    if autoencoder is not None:
        autoencoder = filled(autoencoder, _autoencoder(weights), weights.source)
    ema = jax.tree.map(lambda old, new: jax.device_put(jnp.copy(new), old.sharding), state.ema, params)
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
    """Arrays of a source in the structure of `tree`, and on its devices if it has any.

    Arrays of `tree` are given up as they are replaced; it may also hold shapes only.

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
        shape, dtype, where = array.shape, array.dtype, array.sharding
        if isinstance(array, jax.Array):
            array.delete()

        def read(box, key=key, dtype=dtype):
            return source.read(key, box).astype(dtype)

        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        made[key] = jax.make_array_from_callback(shape, where or one, read)
    return arrays.unnamed(tree, made)
