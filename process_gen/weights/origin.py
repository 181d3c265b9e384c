"""Weights of any origin: a run of this project, a published model, or a part of one.

    weights = read_weights("BAGEL-7B-MoT")
    weights.model, weights.params("float32")

Of published weights only JSON files, headers and fixed tables are read; `params` and
`autoencoder` make sources whose arrays are read box by box, when they are needed
(`process_gen.checkpoints.published.sources`). Files of a run are hashed first, and a
`.safetensors` file of ours is read whole.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from process_gen.checkpoints import export, load
from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.published import adapters, bagel, configs, flux, parts, tensors
from process_gen.checkpoints.published.sources import Joined, Make
from process_gen.experiment import builders, vocabulary
from process_gen.models.config import FluxConfig, LoraConfig, ModelConfig, model_config

AUTOENCODER = "autoencoder"
"""The item of a step that holds the frozen autoencoder."""
AVERAGE = "ema"
"""The item that holds the exponential moving average (EMA) of the trained parameters."""


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Weights with adapters that are not merged.

    Attributes:
      lora: rank and alpha of the adapters.
      params: makes a source of all arrays, the adapters among them.
      base: path of the weights that the adapters were trained on; "" where it is unknown.
      besides: names of other trained parameters, which an export of the adapters alone would lose.
    """

    lora: LoraConfig
    params: Make
    base: str
    besides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model, or a part of one.

    Attributes:
      kind: `ours`, `bagel`, `adapters`, `qwen2`, `siglip2` or `autoencoder`.
      source: its path, for messages.
      tokenizer: the folder in which its tokenizer's files are, if there are any.
      metadata: what a run keeps with its weights (config, tokenizer), or what their files say.
      model: its sizes, without adapters; None for an autoencoder alone.
      params: makes a source of the model's arrays, with adapters merged; None without a model.
      flux: sizes of the autoencoder.
      autoencoder: makes a source of its arrays; None without one.
      adapted: the same model with its adapters apart; None without adapters.
    """

    kind: str
    source: str
    tokenizer: epath.Path
    metadata: Mapping[str, Any]
    model: ModelConfig | None = None
    params: Make | None = None
    flux: FluxConfig | None = None
    autoencoder: Make | None = None
    adapted: Adapted | None = None

    @property
    def files(self) -> Mapping[str, configs.Json] | None:
        """The JSON files that were published with it, by name; None for other weights."""
        return self.metadata.get("published", {}).get("files")


def read_weights(
    source: epath.PathLike,
    *,
    vit: bool = True,
    vision: epath.PathLike | None = None,
    autoencoder: epath.PathLike | None = None,
    which: str = "ema",
    seed: int = 0,
    base: epath.PathLike | None = None,
) -> Weights:
    """Detects what `source` is, and reads what describes it; of a run every host has to call this.

    Args:
      source: a folder or a file.
      vit: False leaves the ViT of a published model out.
      vision: a SigLIP 2, where the source is a language model alone.
      autoencoder: a FLUX autoencoder, where the source has none or is to get another one.
      which: weights of a run, `ema` or `params`.
      seed: of the parameters that start random, where the source is a language model alone.
      base: the weights that adapters belong to, where they do not say or have moved.

    Raises:
      CheckpointNotFound: nothing that can be read.
      CheckpointCorrupt, CheckpointMismatch: a file is broken, or files contradict one another.
    """
    place = load.absolute(source)
    kind = kind_of(place)
    if kind == "ours":
        return read_ours(place, which, autoencoder)
    if kind == "adapters":
        return _with_adapters(place, base, vit=vit, autoencoder=autoencoder, which=which)
    if kind == "bagel":
        found = bagel.read_published(place, vit, autoencoder)
        told = {"from": str(place), "files": dict(found.files), "timestep_shift": found.timestep_shift}
        return _published(kind, place, found.model, found.pieces, found.autoencoder, told)
    if kind == "qwen2":
        coder = None if autoencoder is None else flux.read_autoencoder(autoencoder)
        tower = None if vision is None else parts.read_siglip2(vision)
        language = parts.read_qwen2(place)
        model = parts.model_of(language, tower, coder and coder.config)
        taken = {"language_model": place, "vision": vision, "autoencoder": autoencoder}
        taken = {name: path if path is None else str(path) for name, path in taken.items()}
        start = functools.partial(parts.start, model, language, tower, seed)
        return _published(kind, place, model, start, coder, {"from": {**taken, "seed": seed}})
    if kind == "siglip2":
        part = parts.read_siglip2(place)
        model = parts.tower_of(part)
        return Weights(kind, str(place), place, {}, model, functools.partial(part.pieces, model))
    files = flux.read_autoencoder(place)
    metadata = {"flux": dataclasses.asdict(files.config), "published": {"from": str(place)}}
    return Weights(kind, str(place), place, metadata, flux=files.config, autoencoder=files.pieces)


def kind_of(place: epath.Path) -> str:
    """The kind of weights (see `Weights`) in a folder or file; CheckpointNotFound for none, or pickles."""
    if not place.exists():
        raise CheckpointNotFound(f"no such weights: {place}")
    if place.is_file():
        return "ours" if export.is_ours(str(place)) else "autoencoder"
    if load.steps(place / load.FOLDER) or load.steps(place) or load.is_step(place):
        return "ours"
    if (place / adapters.CONFIG).is_file():
        return "adapters"
    if (place / "llm_config.json").is_file():
        return "bagel"
    fields = configs.read_json(place / "config.json", required=False)
    family = str(fields.get("model_type", ""))
    for prefix, kind in (("qwen", "qwen2"), ("siglip", "siglip2")):
        if family.startswith(prefix):
            return kind
    if tensors.find(place, flux.STEMS.values()) is not None:
        # Beside a model's file it is that of a BAGEL whose configs are missing: reading it says so.
        held = [stem + end for stem in bagel.MODEL_STEMS for end in (tensors.SUFFIX, tensors.INDEX)]
        return "bagel" if any((place / name).exists() for name in held) else "autoencoder"
    raise CheckpointNotFound(
        f"{place} holds neither a run (checkpoints/), nor a BAGEL (llm_config.json), nor a Qwen2 or SigLIP 2 "
        "(config.json with its model_type), nor an autoencoder (ae.safetensors)"
    )


def _published(
    kind: str,
    place: epath.Path,
    model: ModelConfig,
    params: Make,
    coder: flux.AutoencoderFiles | None,
    told: Mapping[str, Any],
) -> Weights:
    metadata = {**vocabulary.describe_files(place), "model": dataclasses.asdict(model), "published": told}
    make = None if coder is None else coder.pieces
    return Weights(kind, str(place), place, metadata, model, params, model.flux, make)


def read_ours(
    source: epath.PathLike, which: str = "ema", autoencoder: epath.PathLike | None = None
) -> Weights:
    """The weights of a run, of one of its steps, or of a `.safetensors` file of ours; see `read_weights`."""
    saved = load.open_saved(source)
    place, metadata = saved.place, saved.metadata
    params, besides = saved.source(which) if which in saved.items else None, []
    coder = saved.source(AUTOENCODER) if AUTOENCODER in saved.items and autoencoder is None else None
    if params is None and coder is None:
        saved.source(which)  # raises CheckpointNotFound
    model = _sizes(metadata)
    both = {AVERAGE, "params"} <= set(saved.items)  # a file of ours holds one item, and all of it
    if both and which == AVERAGE and _averages_some(metadata, model):
        whole, besides = saved.source("params"), [x for x in params.spec if not adapters.is_adapter(x)]
        params = Joined([params, Joined([whole], whole.spec.keys() - params.spec.keys())])
    if model is None and (params is not None or "flux" not in metadata):
        raise CheckpointMismatch(f"{place} carries no config, and does not say of which sizes its model is")
    if model is not None:
        lora, model = model.lora, dataclasses.replace(model, lora=LoraConfig())
    weights = Weights(
        "ours",
        str(place),
        (place.parent if place.is_file() else place.parent.parent) / "tokenizer",
        metadata,
        model,
        None if params is None else lambda _: params,
        model.flux if model else FluxConfig(**metadata["flux"]),
        None if coder is None else lambda _: coder,
    )
    if params is not None and any(map(adapters.is_adapter, params.spec)):
        base = metadata.get("config", {}).get("train", {}).get("init", "")
        weights = _merging(weights, lora, lambda _: params, base, besides)
    if autoencoder is None:
        return weights
    given = flux.read_autoencoder(autoencoder)
    return dataclasses.replace(weights, flux=given.config, autoencoder=given.pieces)


def _averages_some(metadata: Mapping[str, Any], model: ModelConfig | None) -> bool:
    """Whether the EMA of a run covers only some parameters: those that are trained."""
    frozen = (metadata.get("config") or {}).get("optimizer", {}).get("freeze")
    return bool(frozen) or model is not None and model.lora.rank > 0


def _merging(
    weights: Weights, lora: LoraConfig, params: Make, base: str, besides: Sequence[str] = ()
) -> Weights:
    """Gives weights both forms of `params`, a maker of unmerged arrays: merged, and apart (`adapted`)."""
    return dataclasses.replace(
        weights,
        params=lambda dtype: adapters.Merged(params(dtype), lora.scale),
        adapted=Adapted(lora, params, base, tuple(besides)),
    )


def _with_adapters(place: epath.Path, base: epath.PathLike | None, **options: Any) -> Weights:
    """Reads a folder of adapters, and the weights that they belong to."""
    found = adapters.read_adapters(place)
    where = str(base or found.base)
    if not where or not load.absolute(where).exists():
        raise CheckpointNotFound(
            f"the adapters in {place} belong to {where!r}, and nothing is there: give those weights as base "
            "(--base=PATH)"
        )
    below = read_weights(where, **options)
    if below.model is None or below.params is None:
        raise CheckpointMismatch(f"{where} holds no model that the adapters in {place} could belong to")
    found.pieces(below.model)  # raises where they do not fit
    weights = dataclasses.replace(below, kind="adapters", source=str(place))

    def params(dtype: str | None) -> Joined:
        return Joined([below.params(dtype), found.pieces(below.model, dtype)])

    return _merging(weights, found.lora, params, where)


def _sizes(metadata: Mapping[str, Any]) -> ModelConfig | None:
    """The sizes of the model as the metadata of our weights gives them; None where it does not."""
    with builders.as_config_error():
        if (model := metadata.get("model")) is not None:
            return model_config("bagel_7b", **model)  # any size: `model` gives every field
        if (config := metadata.get("config")) is not None:
            return builders.build_model_config(builders.from_json(config))
    return None
