"""What each number and choice of a config may be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from process_gen.distributed.offload import PARTS
from process_gen.scenes.levels import LEVELS
from process_gen.trajectory.stages import Mode


@dataclasses.dataclass(frozen=True)
class Range:
    """A condition on a value, and how to say it."""

    text: str
    holds: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(*choices: str) -> Range:
    return Range(f"one of {', '.join(choices)}", lambda value: value in choices)


def _is_size(value: Any) -> bool:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    return all(_whole(side) and side > 0 for side in value)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(_is_size(size) for size in value)


def _is_grid(value: Any) -> bool:
    return _is_size(value) or (isinstance(value, (tuple, list)) and tuple(value) == (0, 0))


COUNT = Range("a whole number of at least 1", lambda value: _whole(value) and value >= 1)
COUNT_OR_OFF = Range("a whole number of at least 0 (0 is off)", lambda value: _whole(value) and value >= 0)
SEED = Range("a whole number in [0, 2^32)", lambda value: _whole(value) and 0 <= value < 2**32)
SHARE = Range("between 0 and 1", lambda value: _number(value) and 0 <= value <= 1)
DECAY = Range("at least 0 and below 1", lambda value: _number(value) and 0 <= value < 1)
POSITIVE = Range("a number above 0", lambda value: _number(value) and value > 0)
NOT_NEGATIVE = Range("a number of at least 0", lambda value: _number(value) and value >= 0)
FINITE = Range("a number", _number)
FLAG = Range("True or False", lambda value: isinstance(value, bool))
TEXT = Range("a text", lambda value: isinstance(value, str))

RANGES: dict[str, Range] = {
    "seed": SEED,
    "layout.image_size": Range("two whole numbers above 0, e.g. '(32, 32)'", _is_size),
    "layout.vit_grid": Range("two whole numbers above 0, or '(0, 0)' for none", _is_grid),
    "layout.prompt_image": FLAG,
    **dict.fromkeys(("layout.prompt", "layout.turns", "layout.trajectories", "layout.copies"), COUNT),
    **dict.fromkeys(("layout.instruction", "layout.before", "layout.after"), COUNT_OR_OFF),
    "layout.corrections": COUNT_OR_OFF,
    **dict.fromkeys(("data.tokenizer", "data.latents"), TEXT),
    "data.mode": _one_of(*(mode.value for mode in Mode)),
    "data.on_error": _one_of("fail", "skip"),
    "data.buckets": Range(
        "sizes of images, e.g. '((512, 512), (448, 576))', one alone '((448, 576),)', or ()", _are_sizes
    ),
    "flow.time_mean": FINITE,
    **dict.fromkeys(("flow.time_std", "flow.time_shift"), POSITIVE),
    **dict.fromkeys(("flow.drop_text", "flow.drop_images", "flow.context_noise_share"), SHARE),
    **dict.fromkeys(("flow.drop_latents", "flow.drop_vit"), SHARE),
    "flow.context_noise": NOT_NEGATIVE,
    "flow.sample_latents": FLAG,
    "optimizer.name": _one_of("adamw", "muon"),
    **dict.fromkeys(
        ("optimizer.learning_rate", "optimizer.muon_learning_rate", "optimizer.eps", "optimizer.clip"),
        POSITIVE,
    ),
    **dict.fromkeys(("optimizer.b1", "optimizer.b2", "optimizer.ema"), DECAY),
    "optimizer.ema_warmup": FLAG,
    "optimizer.final_share": SHARE,
    "optimizer.moment_dtype": _one_of("float32", "bfloat16"),
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.warmup_steps": COUNT_OR_OFF,
    **dict.fromkeys(("train.batch_size", "train.steps", "train.accumulate"), COUNT),
    **dict.fromkeys(("train.log_every", "train.checkpoint_every", "train.keep"), COUNT),
    **dict.fromkeys(("train.sheet_every", "train.local_every"), COUNT_OR_OFF),
    **dict.fromkeys(("train.init", "train.local_dir"), TEXT),
    "train.max_nonfinite": COUNT,
    "train.offload": _one_of(*PARTS),
    **dict.fromkeys(("eval.per_group", "eval.batch_size"), COUNT),
    **dict.fromkeys(("eval.every", "eval.final_per_group"), COUNT_OR_OFF),
}
"""Dotted key -> what its value must be. What other objects check when they are built is not repeated here."""

SCENES_RANGES: dict[str, Range] = {
    "data.level": _one_of(*LEVELS),
    "data.examples": COUNT,
    "data.data_dir": TEXT,
    "data.seed": SEED,
    **dict.fromkeys(("data.wrong", "data.misplan", "data.slip", "data.detour"), SHARE),
}
"""The same, of the keys that only `data.source=scenes` reads; configs for other sources lack them."""
