"""Weights of any origin: a run of this project, a published model, or a part of one.

    weights = read_weights("BAGEL-7B-MoT")
    weights.model, weights.params("float32")

Nothing is read but descriptions; `params` and `autoencoder` are sources that are
read box by box (`process_gen.checkpoints.published.sources`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from process_gen.checkpoints import export, load, manifest
from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.published import bagel, configs, flux, folder, parts, sources, tensors
from process_gen.experiment import builders, vocabulary
from process_gen.models.config import FluxConfig, ModelConfig, VitConfig

Make = Callable[[str | None], sources.Source]
"""Arrays in a dtype; None leaves them as they are stored."""
AUTOENCODER = "autoencoder"
"""The item of a step that holds the frozen autoencoder."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model, or a part of one.

    Attributes:
      kind: `ours`, `bagel`, `qwen2`, `siglip2` or `autoencoder`.
      source: where it lies, for messages.
      model: its sizes, None for an autoencoder alone.
      params: makes the model's arrays; None without.
      flux: sizes of the autoencoder.
      autoencoder: makes its arrays; None without.
      files: published JSON files that belong to it.
      tokenizer: the folder in which its tokenizer's files are, if there are any.
      metadata: what a run keeps with its weights.
    """

    kind: str
    source: str
    model: ModelConfig | None
    params: Make | None
    flux: FluxConfig | None
    autoencoder: Make | None
    files: Mapping[str, configs.Json] | None
    tokenizer: epath.Path
    metadata: Mapping[str, Any]


def read_weights(
    source: epath.PathLike,
    *,
    vit: bool = True,
    vision: epath.PathLike | None = None,
    autoencoder: epath.PathLike | None = None,
    which: str = "ema",
    seed: int = 0,
) -> Weights:
    """Finds out what `source` is, and reads its descriptions.

    Args:
      source: a folder or a file.
      vit: False leaves the ViT of a published model out.
      vision: a SigLIP 2, where the source is a language model alone.
      autoencoder: a FLUX autoencoder, where the source has none or is to get another one.
      which: weights of a run, `ema` or `params`.
      seed: of what nobody has published, where the source is a language model alone.

    Raises:
      CheckpointNotFound: nothing that can be read.
      CheckpointCorrupt, CheckpointMismatch: it is broken, or contradicts itself.
    """
    place = load.absolute(source)
    kind = kind_of(place)
    if kind == "ours":
        return _ours(place, which, autoencoder)
    if kind == "bagel":
        return _bagel(folder.read_published(place, vit=vit, autoencoder=autoencoder))
    if kind == "qwen2":
        return _started(place, vision, autoencoder, seed)
    if kind == "siglip2":
        return _tower(place)
    files = flux.read_autoencoder(place)
    make = functools.partial(bagel.autoencoder_pieces, files)
    metadata = {"flux": dataclasses.asdict(files.config), "published": {"from": str(place)}}
    return Weights("autoencoder", str(place), None, None, files.config, make, None, place, metadata)


def kind_of(place: epath.Path) -> str:
    """What a folder or file holds, by the names in it.

    Raises:
      CheckpointNotFound: nothing that is known, or pickles.
    """
    if not place.exists():
        raise CheckpointNotFound(f"no such weights: {place}")
    if place.is_file():
        return "ours" if export.is_ours(str(place)) else "autoencoder"
    if load.steps(place / load.FOLDER) or load.steps(place) or load.is_step(place):
        return "ours"
    if (place / "llm_config.json").is_file():
        return "bagel"
    fields = configs.read_json(place / "config.json", required=False)
    family = str(fields.get("model_type", ""))
    for prefix, kind in (("qwen", "qwen2"), ("siglip", "siglip2")):
        if family.startswith(prefix):
            return kind
    if tensors.find(place, flux.STEMS) is not None:
        # Beside a model it is that of a BAGEL whose configs are missing, which is then said.
        held = [stem + end for stem in folder.MODEL_STEMS for end in (tensors.SUFFIX, tensors.INDEX)]
        return "bagel" if any((place / name).exists() for name in held) else "autoencoder"
    raise CheckpointNotFound(
        f"{place} holds neither a run (checkpoints/), nor a BAGEL (llm_config.json), nor a Qwen2 or SigLIP 2 "
        "(config.json with its model_type), nor an autoencoder (ae.safetensors)"
    )


def model_from_json(fields: Mapping[str, Any]) -> ModelConfig:
    """The sizes that `configs.as_json` wrote."""
    fields = dict(fields)
    for name, part in (("vit", VitConfig), ("flux", FluxConfig)):
        if fields.get(name) is not None:
            fields[name] = part(**fields[name])
    return ModelConfig(**fields)


def _bagel(published: folder.Published) -> Weights:
    metadata = {
        **vocabulary.describe_files(published.folder),
        "model": configs.as_json(published.model),
        "published": {
            "from": str(published.folder),
            "files": dict(published.files),
            "timestep_shift": published.timestep_shift,
        },
    }
    return Weights(
        "bagel",
        str(published.folder),
        published.model,
        functools.partial(bagel.model_pieces, published, None),
        published.model.flux,
        functools.partial(bagel.autoencoder_pieces, published.autoencoder),
        published.files,
        published.folder,
        metadata,
    )


def _started(
    place: epath.Path, vision: epath.PathLike | None, autoencoder: epath.PathLike | None, seed: int
) -> Weights:
    coder = None if autoencoder is None else flux.read_autoencoder(autoencoder)
    tower = None if vision is None else parts.read_siglip2(vision)
    language = parts.read_qwen2(place)
    start = functools.partial(parts.start, language, tower, coder, seed=seed)
    model = start().model
    taken = {"language_model": str(place), "vision": vision, "autoencoder": autoencoder, "seed": seed}
    metadata = {
        **vocabulary.describe_files(place),
        "model": configs.as_json(model),
        "published": {"from": {k: v if v is None else str(v) for k, v in taken.items()}},
    }
    make = None if coder is None else functools.partial(bagel.autoencoder_pieces, coder)
    return Weights(
        "qwen2",
        str(place),
        model,
        lambda dtype: start(dtype=dtype or bagel.DTYPE).source,
        model.flux,
        make,
        None,
        place,
        metadata,
    )


def _tower(place: epath.Path) -> Weights:
    part = parts.read_siglip2(place)
    model = parts.sizes_of(part)
    spec = {name: shape for name, shape in bagel.model_shapes(model).items() if name.startswith("vit/")}
    make = functools.partial(part.pieces, spec)
    return Weights("siglip2", str(place), model, make, None, None, None, place, {})


def _ours(place: epath.Path, which: str, autoencoder: epath.PathLike | None) -> Weights:
    if place.is_file():
        return _packaged(load.load_params(str(place), which), autoencoder)
    step_dir = place if load.is_step(place) else load.latest_step_dir(place)
    items = manifest.items(step_dir)
    held = AUTOENCODER in items and autoencoder is None
    if which not in items and not held:
        raise CheckpointNotFound(f"{step_dir} holds no {which!r} weights, only {', '.join(items)}")
    wanted = [item for item in (which, AUTOENCODER) if item in items]
    manifest.verify(step_dir, (*wanted, load.METADATA))
    metadata = load.read_json(step_dir, load.METADATA)
    sizes = _sizes(metadata)
    if sizes is None and (which in items or "flux" not in metadata):
        raise _without_sizes(step_dir)
    coder_sizes = sizes.flux if sizes else FluxConfig(**metadata["flux"])
    coder = (lambda _: sources.StoredArrays(step_dir, AUTOENCODER)) if held else None
    if autoencoder is not None:
        coder, coder_sizes = _given(autoencoder)
    return Weights(
        "ours",
        str(step_dir),
        sizes,
        (lambda _: sources.StoredArrays(step_dir, which)) if which in items else None,
        coder_sizes,
        coder,
        metadata.get("published", {}).get("files"),
        step_dir.parent.parent / "tokenizer",
        metadata,
    )


def _packaged(loaded: load.Loaded, autoencoder: epath.PathLike | None) -> Weights:
    """A model in one file (`checkpoints.export`)."""
    place, metadata = epath.Path(loaded.source), loaded.metadata
    if (sizes := _sizes(metadata)) is None:
        raise _without_sizes(place)
    coder, coder_sizes = (None, sizes.flux) if autoencoder is None else _given(autoencoder)
    return Weights(
        "ours",
        str(place),
        sizes,
        lambda _: sources.TreeArrays(loaded.params),
        coder_sizes,
        coder,
        metadata.get("published", {}).get("files"),
        place.parent / "tokenizer",
        metadata,
    )


def _sizes(metadata: Mapping[str, Any]) -> ModelConfig | None:
    """The sizes of a model that weights of ours say they are of."""
    model, config = metadata.get("model"), metadata.get("config")
    if model is not None:
        return model_from_json(model)
    return None if config is None else builders.build_model_config(builders.from_json(config))


def _without_sizes(place: epath.Path) -> CheckpointMismatch:
    return CheckpointMismatch(f"{place} does not say of which sizes its model is")


def _given(autoencoder: epath.PathLike) -> tuple[Make, FluxConfig]:
    """A FLUX autoencoder's arrays, and its sizes."""
    files = flux.read_autoencoder(autoencoder)
    return functools.partial(bagel.autoencoder_pieces, files), files.config
