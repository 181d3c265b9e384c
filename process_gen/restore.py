"""From a checkpoint back to a model that samples: for notebooks, tests and the entry points."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from process_gen import experiment
from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.load import load_params
from process_gen.data.tokenizers import Tokenizer
from process_gen.models.unified import UnifiedModel
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.trajectory.batch import Batch
from process_gen.vocabulary import tokenizer_of

WEIGHTS = ("ema", "params")
SHIPPED = "scenes_s.safetensors"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A model as it came out of a checkpoint.

    Attributes:
      model, params: the modules and their weights, on the default device.
      tokenizer: the one it was trained with.
      level_name: level of the scenes world that it draws; None for other data.
      config: its config as plain JSON values (`experiment.from_json` makes a ConfigDict of it).
      source: where the weights came from, for logs.
    """

    model: UnifiedModel
    params: Any
    tokenizer: Tokenizer
    level_name: str | None
    config: Mapping[str, Any]
    source: str


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


def load_model(path: str | None = None, which: str = "ema", tokenizer: str | None = None) -> Restored:
    """Loads a model from a workdir, a step's folder or a `.safetensors` file.

    Args:
      path: where to look; the shipped weights by default.
      which: `ema` or `params`.
      tokenizer: the folder of its tokenizer, where neither a copy beside it nor the folder it names is there.

    Raises:
      ValueError: unknown kind of weights, or a stored config that cannot work.
      CheckpointError: nothing there, broken, or not a model of this project.
    """
    if which not in WEIGHTS:
        near = difflib.get_close_matches(which, WEIGHTS) or WEIGHTS
        raise ValueError(f"unknown weights {which!r}; did you mean {' or '.join(near)}?")
    loaded = load_params(shipped_weights() if path is None else str(path), which)
    fields = loaded.metadata.get("config")
    if not isinstance(fields, Mapping):
        raise CheckpointMismatch(f"{loaded.source} carries no config: it was not made by process_gen.train")
    tokenizer = tokenizer_of(loaded.metadata, loaded.source, tokenizer)
    model = experiment.build_model(experiment.from_json(fields), tokenizer)
    _check_same(model, loaded.params, loaded.source)
    params = jax.tree.map(lambda x: jax.device_put(jnp.asarray(x, jnp.float32)), loaded.params)
    data = fields["data"]
    level = data.get("level") if data.get("source") == "scenes" else None
    return Restored(model, params, tokenizer, level, fields, loaded.source)


def load_sampler(
    path: str | None = None,
    which: str = "ema",
    rows: int = 32,
    tokenizer: str | None = None,
    **settings: Any,
) -> tuple[Sampler, Restored]:
    """A sampler of a checkpoint, and the checkpoint as it was restored.

    Args:
      path, which, tokenizer: see `load_model`.
      rows: trajectories drawn side by side.
      **settings: fields of `SamplerConfig` that are to differ from the stored config.

    Raises:
      ValueError, CheckpointError: see `load_model`; SamplerError (a ValueError) for bad settings.
    """
    restored = load_model(path, which, tokenizer)
    fields = {"mode": restored.config["data"].get("mode", "process"), **restored.config["sampling"]}
    config = SamplerConfig.of(fields, **settings)
    return Sampler(restored.model, restored.params, restored.tokenizer, config, rows), restored


def _check_same(model: UnifiedModel, params: Any, source: str) -> None:
    """Raises CheckpointMismatch unless `params` are those of `model`."""
    batch = Batch.spec(model.layout, 1)
    wanted = jax.eval_shape(lambda b: model.init(jax.random.key(0), b)["params"], batch)
    wanted, found = _shapes(wanted), _shapes(params)
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        name = odd[0]
        raise CheckpointMismatch(
            f"the weights in {source} do not fit their config: {name} is {found.get(name, 'missing')}, "
            f"the model has {wanted.get(name, 'no such weights')} ({len(odd)} of {len(wanted)} differ)"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(tree))[0]
    return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}
