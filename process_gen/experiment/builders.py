"""Builds the objects that a config describes: layout, model, losses, optimizer.

Training, sampling and evaluation all build them here, from the same keys. `check`
refuses a config that cannot work, before data is built or a device is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import optax
from flax.traverse_util import path_aware_map

from process_gen.data.sources import data_of_sources
from process_gen.data.tokenizers import SCENES, Tokenizer
from process_gen.distributed.mesh import MeshConfig
from process_gen.experiment import tuning
from process_gen.experiment.ranges import RANGES, SCENES_RANGES, SOURCE_RANGES
from process_gen.losses import LossTable
from process_gen.models import vit
from process_gen.models.adapters import LORA
from process_gen.models.autoencoder import latent_shape
from process_gen.models.config import ModelConfig, UnrollOptions, model_config
from process_gen.models.unified import UnifiedModel
from process_gen.sampling import SamplerConfig
from process_gen.sampling.config import check_fits
from process_gen.scenes.levels import get_level
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.record import STEP_KEYS, TURN_KEYS
from process_gen.trajectory.stages import Mode


class ConfigError(ValueError):
    """A config that cannot work; the message names the key and the way out."""


def from_json(fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A locked config from plain JSON values, as checkpoints hold them."""
    return ml_collections.ConfigDict(fields).lock()


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(json.dumps(config.to_dict()))


def build_model_config(config: ml_collections.ConfigDict) -> ModelConfig:
    """Builds `config.model`: a row of the size table, with the fields that the config replaces."""
    fields = config.model.to_dict()
    return model_config(fields.pop("size"), **fields)


def build_layout(config: ml_collections.ConfigDict, model: ModelConfig | None = None) -> Layout:
    """Builds `config.layout`, with the latent grid that the model's autoencoder gives for the image size.

    Raises:
      ConfigError: unknown keys, bad values or names of fields, or ViT tokens that the model cannot make.
    """
    fields = config.layout.to_dict()
    fields |= {key: tuple(value) for key, value in fields.items() if isinstance(value, (list, tuple))}
    own = tuple(config.data.get("fields", {}).items())
    for name, _ in own:
        if name in (*TURN_KEYS, *STEP_KEYS) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"config.data.fields has {name!r}: a field of your own has a name of letters, digits, - "
                "and _ that no field of a turn has"
            )
    model = model or build_model_config(config)
    grid, values = latent_shape(model, fields["image_size"])
    known = {f.name for f in dataclasses.fields(Layout)} - {"fields"}
    unknown = sorted(set(fields) - known)
    if earlier := [key for key in unknown if key in ("steps", "plan", "inspect", "refine")]:
        raise ConfigError(
            f"config.layout has the keys {earlier} of an earlier version, in which a row had slots for steps "
            "and not for turns: weights of that version can be read with that version alone"
        )
    if unknown:
        raise ConfigError(f"config.layout has unknown keys {unknown}; known: {sorted(known)}")
    with as_config_error():
        layout = Layout(**fields, latent_grid=grid, latent_values=values, fields=own)
        vit.check(model, layout)
    return layout


def build_layouts(config: ml_collections.ConfigDict) -> dict[tuple[int, int], Layout]:
    """Builds the layouts by image size: that of `config.layout` first, then those of `config.data.buckets`.

    Raises:
      ConfigError: as `build_layout`; a size that the model cannot take; or two of one aspect ratio.
    """
    model = build_model_config(config)
    first = build_layout(config, model)
    layouts = {first.image_size: first}
    for size in map(tuple, config.data.buckets):
        try:
            layout = vit.reshaped(model, first, size)
        except ValueError as error:
            raise ConfigError(f"config.data.buckets: {error}") from None
        for other in layouts:
            if other != size and other[0] * size[1] == other[1] * size[0]:
                raise ConfigError(
                    f"config.data.buckets: {other} and {size} are of one shape, keep one of them"
                )
        layouts.setdefault(size, layout)
    return layouts


def build_model(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> UnifiedModel:
    """Builds the model of a config: modules, layout and the ids of control tokens.

    Raises:
      ConfigError: the tokenizer has more ids than the model's embedding has rows.
    """
    sizes = build_model_config(config)
    if tokenizer.vocab_size > sizes.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, model size {config.model.size!r} has room for "
            f"{sizes.vocab_size}: set --config.model.vocab_size={tokenizer.vocab_size}, or choose another "
            "size or another config.data.tokenizer"
        )
    return UnifiedModel(sizes, build_layout(config, sizes), ControlIds.of(tokenizer))


def build_unroll_options(config: ml_collections.ConfigDict) -> UnrollOptions:
    """Builds the options of `config.flow`, with the order of the loops, `config.train.unroll`."""
    return UnrollOptions(order=config.train.unroll, **config.flow.to_dict())


def build_losses(config: ml_collections.ConfigDict) -> LossTable:
    """Builds the table of `config.losses`, which also logs each of `config.data.sources` separately."""
    return LossTable(config.losses.to_dict(), tuple(config.data.get("sources", ())))


def build_optimizer(config: ml_collections.ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds AdamW or Muon, with linear warm-up, cosine decay and clipping by the global gradient norm.

    Muon (Jordan et al., 2024) orthogonalizes the momentum of the kernels of stacked layers; its rate,
    `muon_learning_rate`, follows the same schedule. All other parameters, embedding and heads included, take
    AdamW, with Nesterov momentum and no weight decay then. `optimizer.groups` scale the updates last.

    Returns:
      The optimizer, to be given the trained parameters only, and the schedule of `learning_rate`.

    Raises:
      ConfigError: more warm-up steps than steps, or an unknown optimizer.
    """
    c, steps = config.optimizer, config.train.steps
    if c.warmup_steps >= steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps ({c.warmup_steps}) must be below config.train.steps ({steps})"
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, c.learning_rate, c.warmup_steps, steps, c.learning_rate * c.final_share
    )
    if c.name == "adamw":
        update = optax.adamw(
            schedule,
            b1=c.b1,
            b2=c.b2,
            eps=c.eps,
            mu_dtype=c.moment_dtype,
            weight_decay=c.weight_decay,
            mask=_decays,
        )
    elif c.name == "muon":
        update = optax.contrib.muon(
            lambda step: schedule(step) * (c.muon_learning_rate / c.learning_rate),
            ns_coeffs=_NEWTON_SCHULZ,
            eps=c.eps,
            weight_decay=c.weight_decay,
            mu_dtype=c.moment_dtype,
            adam_learning_rate=schedule,
            adam_b1=c.b1,
            adam_b2=c.b2,
            muon_weight_dimension_numbers=_hidden_matrices,
        )
    else:
        raise ConfigError(f"config.optimizer.name must be adamw or muon, got {c.name!r}")
    parts = [optax.clip_by_global_norm(c.clip), update]
    if (scaled := tuning.scaled_by_group(config)) is not None:
        parts.append(scaled)
    return optax.chain(*parts), schedule


_NEWTON_SCHULZ = ((3.4445, -4.775, 2.0315),) * 5
"""Coefficients of each Newton-Schulz iteration: with one triple each, optax scans; that compiles faster."""


def _hidden_matrices(params: Any) -> Any:
    """Matrix axes (1, 2) for the kernels [layers, in, out] that Muon updates; None for all else."""

    def axes(path, _):
        stacked = "layers" in path and path[-1] == "kernel"
        return optax.contrib.MuonDimensionNumbers(1, 2) if stacked else None

    return path_aware_map(axes, params)


def _decays(params: Any) -> Any:
    """Which parameters weight decay applies to: kernels, embedding and adapters, not norms and biases."""
    return path_aware_map(lambda path, _: path[-1] in ("kernel", "embedding", *LORA), params)


# ----------------------------------------------------------------------- check


_NAME = re.compile(r"[A-Za-z0-9_-]+")
"""What a source or a custom field may be called: the name becomes part of metric and folder names."""


def check(config: ml_collections.ConfigDict) -> None:
    """Checks that a config can work, before data is built or a device is used.

    Raises:
      ConfigError: the message names the key, and what to set instead.
    """
    _check_ranges(config)
    with as_config_error():
        _check_model(config)
        layout, *_ = build_layouts(config).values()
        build_losses(config)
        build_unroll_options(config)
        sampler = SamplerConfig.of(config.sampling.to_dict(), mode=config.data.mode)
        build_optimizer(config)
        tuning.check(config, build_model_config(config), bool(layout.vit_tokens))
        MeshConfig(**config.mesh.to_dict())
        check_fits(layout, sampler)
        parts = data_of_sources(config.data)
    for data in parts.values():
        if data["source"] == "scenes":
            _check_level(config, data, layout)
    rows, accumulate = config.train.batch_size, config.train.accumulate
    if rows % accumulate:
        raise ConfigError(
            f"config.train.batch_size ({rows}) must be a multiple of config.train.accumulate ({accumulate})"
        )
    _check_tiers(config)


@contextlib.contextmanager
def as_config_error() -> Iterator[None]:
    """Turns what the inside refuses, a ValueError or KeyError, into a `ConfigError` of its text and notes."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, KeyError) as error:
        text = error.args[0] if isinstance(error, KeyError) else str(error)
        raise ConfigError(" ".join([text, *getattr(error, "__notes__", ())])) from error


def _check_ranges(config: ml_collections.ConfigDict) -> None:
    ranges, sources = RANGES, _leaf(config, "data.sources")
    _check_sources(sources)
    default = _leaf(config, "data.source")
    if "scenes" in ([entry.get("source", default) for entry in sources.values()] or [default]):
        missing = [key for key in SCENES_RANGES if key.removeprefix("data.") not in config.data]
        if missing:
            raise ConfigError(
                f"config.data.source=scenes needs {', '.join(f'config.{key}' for key in missing)}, which "
                "this config lacks: take a config made for scenes, as configs/scenes.py or "
                "configs/bagel_7b.py:debug, or another --config.data.source"
            )
        ranges = RANGES | SCENES_RANGES
    for key, allowed in ranges.items():
        value = _leaf(config, key)
        if not allowed.holds(value):
            raise ConfigError(f"config.{key} must be {allowed.text}, got {value!r}")


def _check_sources(sources: Any) -> None:
    """Checks the entries of `data.sources`: their names, and the values of their keys."""
    if not isinstance(sources, ml_collections.ConfigDict):
        raise ConfigError(f"config.data.sources must be a ConfigDict, got {sources!r}")
    for name, entry in sources.items():
        if not _NAME.fullmatch(name) or not isinstance(entry, ml_collections.ConfigDict):
            raise ConfigError(
                "config.data.sources has a ConfigDict for each source, under a name of letters, digits, - "
                f"and _; it has {name!r}: {entry!r}"
            )
        for key, value in entry.items():
            allowed = SOURCE_RANGES.get(key) or (RANGES | SCENES_RANGES).get(f"data.{key}")
            if allowed is not None and not allowed.holds(value):
                raise ConfigError(f"config.data.sources.{name}.{key} must be {allowed.text}, got {value!r}")


def _leaf(config: ml_collections.ConfigDict, key: str) -> Any:
    value = config
    for part in key.split("."):
        if not isinstance(value, ml_collections.ConfigDict) or part not in value:
            raise ConfigError(f"config.{key} is missing: see configs/scenes.py for every key")
        value = value[part]
    return value


def _check_model(config: ml_collections.ConfigDict) -> None:
    """Checks the fields of the model that have a fixed set of values."""
    model = build_model_config(config)
    for field, hint in typing.get_type_hints(ModelConfig).items():
        choices = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Literal and getattr(model, field) not in choices:
            raise ConfigError(
                f"config.model.{field} must be one of {', '.join(choices)}, got {getattr(model, field)!r}"
            )


def _check_tiers(config: ml_collections.ConfigDict) -> None:
    """Checks that local checkpoints have a folder on a local disk, and are more frequent than shared ones."""
    every, folder = config.train.local_every, config.train.local_dir
    if every >= config.train.checkpoint_every:
        raise ConfigError(
            f"config.train.local_every ({every}) must be below config.train.checkpoint_every "
            f"({config.train.checkpoint_every}): local disks are for the steps between"
        )
    if every and not folder:
        raise ConfigError(
            f"config.train.local_every={every} needs --config.train.local_dir=FOLDER of a local disk"
        )
    if folder and "://" in folder:
        raise ConfigError(
            f"config.train.local_dir={folder} must be a folder of a disk that each host has itself"
        )


def _check_level(config: ml_collections.ConfigDict, data: Mapping[str, Any], layout: Layout) -> None:
    """Checks that the images, texts and corrections of a scenes level fit the layout."""
    if config.data.buckets:
        raise ConfigError(
            "config.data.buckets is for folders of pictures, scenes have one size: leave it empty, or set "
            "--config.data.source=folder"
        )
    level, mode = get_level(data["level"]), data["mode"]
    size = (level.image_size, level.image_size)
    if layout.image_size != size:
        raise ConfigError(
            f"level {level.name!r} has images of {size}, config.layout.image_size is {layout.image_size}: "
            f"set --config.layout.image_size='({size[0]}, {size[1]})' or another --config.data.level"
        )
    found = {key: data[key] for key in ("wrong", "misplan") if data[key]}
    if mode == Mode.PROCESS and found and not layout.corrections:
        raise ConfigError(
            f"config.layout.corrections is 0, and scenes with {' or '.join(found)} above 0 have corrections: "
            f"set {' '.join(f'--config.data.{key}=0.0' for key in found)}, or --config.layout.corrections=1"
        )
    if config.data.tokenizer != SCENES:
        return  # the budgets count tokens of the scenes tokenizer; `prepare` counts those of others
    budget = level.budget
    slots = {"prompt": budget.prompt}
    if mode == Mode.PLAN_ONLY:
        slots["before"] = budget.plan
    elif mode == Mode.PROCESS:
        slots["before"] = max(budget.plan, budget.refine)
        if layout.after:  # 0: nothing is inspected
            slots["after"] = budget.inspect
    for slot, needed in slots.items():
        if getattr(layout, slot) < needed:
            raise ConfigError(
                f"config.layout.{slot} is {getattr(layout, slot)}, texts of level {level.name!r} take up to "
                f"{needed} tokens: set --config.layout.{slot}={needed}"
            )
