"""Loads a model or a sampler from a checkpoint, for notebooks, tests and the entry points."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags
from etils import epath
from jax.sharding import Mesh

from process_gen.checkpoints import manifest
from process_gen.checkpoints.errors import CheckpointError, CheckpointMismatch
from process_gen.checkpoints.shipped import located
from process_gen.common.names import check_name
from process_gen.data.tokenizers import Tokenizer
from process_gen.distributed import sharding
from process_gen.distributed.mesh import MeshError, mesh_of_flag
from process_gen.experiment import builders
from process_gen.experiment.placing import sampler_placement
from process_gen.experiment.vocabulary import build_tokenizer, tokenizer_of
from process_gen.models.config import LoraConfig
from process_gen.models.unified import UnifiedModel
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.sampling.config import PromptError, SamplerError
from process_gen.weights.origin import read_ours, read_weights
from process_gen.weights.start import load_onto_devices

ERRORS = (builders.ConfigError, MeshError, CheckpointError, SamplerError, PromptError)
"""What a user can get wrong between a checkpoint and its first image."""

WEIGHTS = ("ema", "params")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A model that was loaded from a checkpoint.

    Attributes:
      model, params: the modules and their weights, on the default device or over a mesh.
      tokenizer: the one it was trained with.
      config: its config as plain JSON values (`builders.from_json` makes a ConfigDict of it).
      source: where the weights came from, for logs.
      autoencoder: weights of the autoencoder; None where it has none.
    """

    model: UnifiedModel
    params: Any
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    source: str
    autoencoder: Any = None

    @property
    def digest(self) -> str:
        """A hash of the weights' files, 16 hex digits: tells results of different weights apart."""
        return manifest.fingerprint(epath.Path(self.source))

    @property
    def level_name(self) -> str | None:
        """The level of the scenes world that it draws, None for other data."""
        data = self.config["data"]
        return data.get("level") if data.get("source") == "scenes" else None


def load_model(
    path: str | None = None,
    which: str = "ema",
    tokenizer: str | None = None,
    config: ml_collections.ConfigDict | None = None,
    mesh: Mesh | None = None,
    dtype: str | None = None,
) -> Restored:
    """Loads a model from a workdir, a step's folder, a `.safetensors` file, or a folder of published weights.

    Args:
      path: where to look; or, where nothing is called so, a name of weights that ship (`shipped.SHIPPED`), by
        default `scenes`.
      which: `ema` or `params`.
      tokenizer: the folder of its tokenizer, instead of the copy beside it or the folder that it names.
      config: how to use weights that carry no config of their own: published ones, and what `convert` makes
        of them.
      mesh: devices to shard the weights over, as in training; the first one by default.
      dtype: `float32` or `bfloat16`, of computations and weights (norms stay in float32); that of its config
        by default.

    Raises:
      ConfigError, MeshError: unknown kind of weights or dtype, or a config or mesh that cannot work.
      CheckpointError: nothing there, broken, or not a model of this project.
    """
    check_name(which, WEIGHTS, "weights", builders.ConfigError)
    if dtype not in (None, *DTYPES):
        raise builders.ConfigError(f"weights are held in {' or '.join(DTYPES)}, got {dtype!r}")
    if config is None:
        path = path or "scenes"
        path = path if os.path.exists(path) else located(path)  # a run without weights is an error here
        published = (epath.Path(path) / "llm_config.json").is_file()
        weights = None if published else read_ours(str(path), which)
        if weights is None or "config" not in weights.metadata:
            raise CheckpointMismatch(
                f"{path} carries no config, it was not made by process_gen.train: give one, such as "
                "--config=configs/bagel_7b.py:paper"
            )
        config = builders.from_json(weights.metadata["config"])
        words = tokenizer_of(weights.metadata, weights.source, tokenizer)
    else:
        with builders.as_config_error():
            layout = builders.build_layout(config)
        if tokenizer is not None:
            config = ml_collections.ConfigDict(config)
            config.data.tokenizer = tokenizer
        words = build_tokenizer(config)
        weights = read_weights(str(path), vit=bool(layout.vit_tokens), which=which)
    with builders.as_config_error():
        model = builders.build_model(config, words)
    # Adapters come merged.
    sizes = dataclasses.replace(model.config, dtype=dtype or model.config.dtype, lora=LoraConfig())
    model = model.clone(config=sizes)
    params, autoencoder = load_onto_devices(weights, model, words, mesh, model.config.dtype)
    return Restored(model, params, words, builders.to_json(config), weights.source, autoencoder)


def load_sampler(
    path: str | None = None,
    which: str = "ema",
    rows: int = 32,
    tokenizer: str | None = None,
    config: ml_collections.ConfigDict | None = None,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> tuple[Sampler, Restored]:
    """A sampler of a checkpoint, and the checkpoint as it was restored.

    The other arguments, and what else is raised, are those of `load_model`.

    Args:
      rows: batch size, trajectories side by side; on a mesh rounded up to a multiple of `data` x `fsdp`.
      **settings: fields of `SamplerConfig` that are to differ from the stored config.

    Raises:
      SamplerError: settings that do not exist, or do not fit the model.
    """
    restored = load_model(path, which, tokenizer, config, mesh, dtype)
    fields = {"mode": restored.config["data"].get("mode", "process"), **restored.config["sampling"]}
    chosen = SamplerConfig.of(fields, **settings)
    if mesh is not None:
        split = sharding.row_shards(mesh)
        rows = -(-rows // split) * split
    parts = (restored.model, restored.params, restored.tokenizer)
    return Sampler(
        *parts, chosen, rows, frozen=restored.autoencoder, **sampler_placement(mesh, rows)
    ), restored


def define_flags() -> None:
    """Defines the flags that `sampler_of_flags` reads."""
    flags.DEFINE_string(
        "workdir", None, "Run folder, file or folder of weights; or shipped ones: scenes (default) or hung."
    )
    flags.DEFINE_string("which", "ema", "Weights of a run: ema or params.")
    flags.DEFINE_string("config", None, "Config, as FILE.py:VARIANT, for weights that carry none.")
    flags.DEFINE_string("tokenizer", None, "Folder of the tokenizer; the checkpoint's own by default.")
    flags.DEFINE_string("dtype", None, f"Of {' and '.join(DTYPES)}; the run's by default.")
    flags.DEFINE_string("mesh", "", "Devices to spread the work over, as data=2,tensor=4; one by default.")


flags.disclaim_key_flags()  # so `--help` of a command lists them as its own


def sampler_of_flags(values: Any, rows: int, **settings: Any) -> tuple[Sampler, Restored]:
    """Calls `load_sampler` with the values of the flags."""
    from process_gen.experiment import cli  # which quietens libraries, as only a command may

    config = None if values.config is None else cli.load_config(values.config)
    words, mesh = values.tokenizer, mesh_of_flag(values.mesh)
    return load_sampler(values.workdir, values.which, rows, words, config, mesh, values.dtype, **settings)
