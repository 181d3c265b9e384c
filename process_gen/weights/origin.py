"""Weights of any origin: a run of this project, a published model, or a part of one.

    weights = read_weights("BAGEL-7B-MoT")
    weights.model, weights.params.in_dtype("float32")

Of published weights only JSON files, headers and fixed tables are read; `params` and
`autoencoder` are sources whose arrays are read box by box, when they are needed
(`process_gen.checkpoints.published.sources`). Files of a run are hashed first, a
`.safetensors` file of ours is read whole, and the parameters that a Qwen2 lacks are drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from process_gen.checkpoints import export, load
from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.published import adapters, bagel, configs, flux, parts, tensors
from process_gen.checkpoints.published.sources import Joined, Source
from process_gen.checkpoints.shipped import located
from process_gen.experiment import builders, vocabulary
from process_gen.models.config import FluxConfig, LoraConfig, ModelConfig, model_config


@dataclasses.dataclass(frozen=True)
class Adapted:
    """All arrays (`params`) with adapters that are not merged.

    `base` is the path of the weights that they were trained on ("" where it is unknown), `besides` are the
    names of other trained parameters, which an export of the adapters alone would lose.
    """

    lora: LoraConfig
    params: Source
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
      params: the model's arrays, with adapters merged; None without a model.
      flux: sizes of the autoencoder.
      autoencoder: its arrays; None without one.
      adapted: the same model with its adapters apart; None without adapters.
    """

    kind: str
    source: str
    tokenizer: epath.Path
    metadata: Mapping[str, Any]
    model: ModelConfig | None = None
    params: Source | None = None
    flux: FluxConfig | None = None
    autoencoder: Source | None = None
    adapted: Adapted | None = None

    def in_dtype(self, dtype: str | None) -> Weights:
        """The same weights, whose arrays are read in another dtype; None leaves it."""
        found = {name: getattr(self, name) for name in ("params", "autoencoder")}
        found = {name: source.in_dtype(dtype) for name, source in found.items() if source is not None}
        if self.adapted is not None:
            found["adapted"] = dataclasses.replace(self.adapted, params=self.adapted.params.in_dtype(dtype))
        return dataclasses.replace(self, **found)


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
    place = load.absolute(located(source))
    kind = kind_of(place)
    if kind == "ours":
        return read_ours(place, which, autoencoder)
    if kind == "adapters":
        return _with_adapters(place, base, vit=vit, autoencoder=autoencoder, which=which)
    if kind == "siglip2":
        part = parts.read_siglip2(place)
        model = parts.tower_of(part)
        return Weights(kind, str(place), place, {}, model, part.pieces(model))
    if kind == "autoencoder":
        sizes, coder = flux.read_autoencoder(place)
        metadata = {"flux": dataclasses.asdict(sizes), "published": {"from": str(place)}}
        return Weights(kind, str(place), place, metadata, flux=sizes, autoencoder=coder)
    if kind == "bagel":
        found = bagel.read_published(place, vit, autoencoder)
        model, params, coder = found.model, found.params, found.autoencoder
        told = {"from": str(place), "files": dict(found.files), "timestep_shift": found.timestep_shift}
    else:
        sizes, coder = (None, None) if autoencoder is None else flux.read_autoencoder(autoencoder)
        tower = None if vision is None else parts.read_siglip2(vision)
        language = parts.read_qwen2(place)
        model = parts.model_of(language, tower, sizes)
        params = parts.start(model, language, tower, seed)
        taken = {"language_model": place, "vision": vision, "autoencoder": autoencoder}
        told = {"from": {**{name: path and str(path) for name, path in taken.items()}, "seed": seed}}
    metadata = {**vocabulary.describe_files(place), "model": dataclasses.asdict(model), "published": told}
    return Weights(kind, str(place), place, metadata, model, params, model.flux, coder)


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


def read_ours(
    source: epath.PathLike, which: str = "ema", autoencoder: epath.PathLike | None = None
) -> Weights:
    """The weights of a run, of one of its steps, or of a `.safetensors` file of ours; see `read_weights`."""
    saved = load.open_saved(source)
    place, metadata = saved.place, saved.metadata
    params = saved.source(which) if which in saved.items else None
    coder = saved.source("autoencoder") if "autoencoder" in saved.items and autoencoder is None else None
    if params is None and coder is None:
        saved.source(which)  # raises CheckpointNotFound
    model = _sizes(metadata)
    if model is None and (params is not None or "flux" not in metadata):
        raise CheckpointMismatch(f"{place} carries no config, and does not say of which sizes its model is")
    sizes, lora = (model.flux, model.lora) if model else (FluxConfig(**metadata["flux"]), LoraConfig())
    config, besides = metadata.get("config") or {}, []
    # The EMA of a run has its trained parameters alone. A file of ours holds one item, and all of it.
    partial = lora.rank > 0 or config.get("optimizer", {}).get("freeze")
    if partial and which == "ema" and {"ema", "params"} <= set(saved.items):
        besides = [name for name in params.spec if not adapters.is_adapter(name)]
        params = Joined(params, saved.source("params"))
    if autoencoder is not None:
        sizes, coder = flux.read_autoencoder(autoencoder)
    model = model and dataclasses.replace(model, lora=LoraConfig())
    tokenizer = (place.parent if place.is_file() else place.parent.parent) / "tokenizer"
    weights = Weights("ours", str(place), tokenizer, metadata, model, params, sizes, coder)
    if params is None or not any(map(adapters.is_adapter, params.spec)):
        return weights
    return _merged(weights, Adapted(lora, params, config.get("train", {}).get("init", ""), tuple(besides)))


def _merged(weights: Weights, adapted: Adapted) -> Weights:
    """The weights with these adapters, merged and apart."""
    params = adapters.Merged(adapted.params, adapted.lora.scale)
    return dataclasses.replace(weights, params=params, adapted=adapted)


def _with_adapters(place: epath.Path, base: epath.PathLike | None, **options: Any) -> Weights:
    """Reads a folder of adapters, and the weights that they belong to."""
    found = adapters.read_adapters(place)
    where = str(base or found.base)
    if not where or not load.absolute(located(where)).exists():
        raise CheckpointNotFound(
            f"the adapters in {place} belong to {where!r}, and nothing is there: give those weights as base "
            "(--base=PATH)"
        )
    below = read_weights(where, **options)
    if below.params is None:
        raise CheckpointMismatch(f"{where} holds no model that the adapters in {place} could belong to")
    params = Joined(below.params, found.pieces(below.model))
    weights = dataclasses.replace(below, kind="adapters", source=str(place))
    return _merged(weights, Adapted(found.lora, params, where))


def _sizes(metadata: Mapping[str, Any]) -> ModelConfig | None:
    """The sizes of the model as the metadata of our weights gives them; None where it does not."""
    with builders.as_config_error():
        if (model := metadata.get("model")) is not None:
            return model_config("bagel_7b", **model)  # any size: `model` gives every field
        if (config := metadata.get("config")) is not None:
            return builders.build_model_config(builders.from_json(config))
    return None
