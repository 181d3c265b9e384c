"""Which parameters a config trains, and at what rate: freezing, learning rates by group, adapters.

    optimizer.freeze   patterns of names (`process_gen.common.patterns`), such as ("vit/*", "connector/*")
    optimizer.groups   {"gen": {"pattern": "backbone/*gen*", "rate": 0.1}}: a tenth of the schedule
    model.lora         adapters; all else is frozen then, unless `freeze` excludes it, as ("!latent_out/*",)

A parameter is in one group at most, so their order does not matter. `rate` multiplies the learning-rate
schedule; a parameter in no group has the rate 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import optax
from flax.traverse_util import path_aware_map
from ml_collections import ConfigDict

from process_gen.checkpoints import arrays
from process_gen.common import patterns, ranges
from process_gen.common.names import hint
from process_gen.models.adapters import LORA
from process_gen.models.config import ModelConfig
from process_gen.models.spec import model_spec

ADAPTERS_ALONE = ("*", *(f"!*/{name}" for name in LORA))
"""Patterns that freeze all but adapters."""


def freeze_patterns(config: ConfigDict, model: ModelConfig) -> tuple[str, ...]:
    """The patterns of frozen parameters: `optimizer.freeze`, after `ADAPTERS_ALONE` if there are adapters."""
    given = tuple(config.optimizer.freeze)
    return (*ADAPTERS_ALONE, *given) if model.lora.rank else given


def scaled_by_group(config: ConfigDict) -> optax.GradientTransformation | None:
    """The transformation that multiplies updates by the rate of their group; None without groups."""
    groups = config.optimizer.groups.to_dict()
    if not groups:
        return None

    def rate(path: tuple[str, ...], _: Any) -> float:
        name = "/".join(path)
        found = [g["rate"] for g in groups.values() if patterns.chooses(_texts(g["pattern"]), name)]
        return found[0] if found else 1.0

    def scaled(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda x, factor: x * factor, updates, path_aware_map(rate, updates))

    return optax.stateless(scaled)


def check(config: ConfigDict, model: ModelConfig, with_vit: bool) -> None:
    """Checks the patterns of frozen parameters, groups and adapters against the model's parameters.

    `with_vit`: whether the layout has ViT tokens, so that the model has ViT weights.

    Raises:
      ValueError: a pattern that matches nothing, groups that overlap or are malformed, or nothing is trained.
    """
    freeze, groups = config.optimizer.freeze, config.optimizer.groups
    if not isinstance(groups, ConfigDict):
        raise ValueError(f"config.optimizer.groups must be a ConfigDict, got {groups!r}")
    if not freeze and not groups and not model.lora.rank:
        return  # skips `model_spec`, which takes a second for large models
    names = sorted(arrays.flatten(nn.meta.unbox(model_spec(model, with_vit))))
    if model.lora.rank:
        kernels = [name for name in names if name.endswith("/kernel") and name != "head/kernel"]
        patterns.check(model.lora.patterns, kernels, "config.model.lora.patterns")
        if not any(map(model.lora.adapts, kernels)):
            raise ValueError("config.model.lora.patterns leaves every matrix out: no adapter is trained")
    patterns.check(freeze, names, "config.optimizer.freeze")
    chosen = freeze_patterns(config, model)
    left = [name for name in names if not patterns.chooses(chosen, name)]
    if not left:
        raise ValueError(f"config.optimizer.freeze={tuple(freeze)} freezes every parameter: nothing is left")
    _check_groups(groups.to_dict(), left, names)


def _check_groups(groups: Mapping[str, Any], left: list[str], names: list[str]) -> None:
    owner: dict[str, str] = {}
    for group, fields in groups.items():
        key = f"config.optimizer.groups.{group}"
        _check_fields(key, fields)
        texts = _texts(fields["pattern"])
        patterns.check(texts, names, f"{key}.pattern")
        found = [name for name in left if patterns.chooses(texts, name)]
        if not found:
            raise ValueError(f"{key}.pattern chooses nothing that is trained: see config.optimizer.freeze")
        for name in found:
            if name in owner:
                raise ValueError(
                    f"config.optimizer.groups: {name} is in {owner[name]!r} and in {group!r}; take it out of "
                    f"one, as pattern=({texts[0]!r}, {'!' + name!r})"
                )
            owner[name] = group


def _check_fields(key: str, fields: Any) -> None:
    wanted = ("pattern", "rate")
    if not isinstance(fields, Mapping):
        raise ValueError(f'{key} must be a dict such as {{"pattern": "vit/*", "rate": 0.1}}, got {fields!r}')
    for field in fields:
        if field not in wanted:
            raise ValueError(f"{key} has no key {field!r}; {hint(field, wanted)}")
    if missing := [field for field in wanted if field not in fields]:
        raise ValueError(f"{key} lacks {' and '.join(missing)}: a group has a pattern and a rate")
    if not ranges.POSITIVE.holds(fields["rate"]):
        raise ValueError(
            f"{key}.rate must be {ranges.POSITIVE.text} (config.optimizer.freeze is for none), got "
            f"{fields['rate']!r}"
        )


def _texts(pattern: Any) -> tuple[str, ...]:
    """A tuple of patterns, from one or several."""
    return (pattern,) if isinstance(pattern, str) else tuple(pattern)
