"""What each number and choice of a config may be."""

from __future__ import annotations

from typing import Any

from process_gen.common.numbers import is_number
from process_gen.distributed.offload import PARTS
from process_gen.scenes.levels import LEVELS
from process_gen.trajectory.ranges import (
    COUNT,
    COUNT_OR_OFF,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    Range,
    one_of,
)
from process_gen.trajectory.stages import Mode


def _is_size(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(COUNT.holds, value))


def _are_sizes(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(_is_size, value))


def _is_grid(value: Any) -> bool:
    return _is_size(value) or value in ((0, 0), [0, 0])


DECAY = Range("at least 0 and below 1", lambda value: is_number(value) and 0 <= value < 1)
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
    "data.mode": one_of(*(mode.value for mode in Mode)),
    "data.on_error": one_of("fail", "skip"),
    "data.buckets": Range(
        "sizes of images, e.g. '((512, 512), (448, 576))', one alone '((448, 576),)', or ()", _are_sizes
    ),
    "flow.time_mean": Range("a number", is_number),
    **dict.fromkeys(("flow.time_std", "flow.time_shift"), POSITIVE),
    **dict.fromkeys(("flow.drop_text", "flow.drop_images", "flow.context_noise_share"), SHARE),
    **dict.fromkeys(("flow.drop_latents", "flow.drop_vit"), SHARE),
    "flow.context_noise": NOT_NEGATIVE,
    "flow.sample_latents": FLAG,
    "optimizer.name": one_of("adamw", "muon"),
    **dict.fromkeys(
        ("optimizer.learning_rate", "optimizer.muon_learning_rate", "optimizer.eps", "optimizer.clip"),
        POSITIVE,
    ),
    **dict.fromkeys(("optimizer.b1", "optimizer.b2", "optimizer.ema"), DECAY),
    "optimizer.ema_warmup": FLAG,
    "optimizer.final_share": SHARE,
    "optimizer.moment_dtype": one_of("float32", "bfloat16"),
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.warmup_steps": COUNT_OR_OFF,
    **dict.fromkeys(("train.batch_size", "train.steps", "train.accumulate"), COUNT),
    **dict.fromkeys(("train.log_every", "train.checkpoint_every", "train.keep"), COUNT),
    **dict.fromkeys(("train.sheet_every", "train.local_every"), COUNT_OR_OFF),
    **dict.fromkeys(("train.init", "train.local_dir"), TEXT),
    "train.max_nonfinite": COUNT,
    "train.offload": one_of(*PARTS),
    **dict.fromkeys(("eval.per_group", "eval.batch_size"), COUNT),
    **dict.fromkeys(("eval.every", "eval.final_per_group"), COUNT_OR_OFF),
}
"""Dotted key -> what its value must be. What other objects check when they are built is not repeated here."""

SCENES_RANGES: dict[str, Range] = {
    "data.level": one_of(*LEVELS),
    "data.examples": COUNT,
    "data.data_dir": TEXT,
    "data.seed": SEED,
    **dict.fromkeys(("data.wrong", "data.misplan", "data.slip", "data.detour"), SHARE),
}
"""The same, of the keys that only `data.source=scenes` reads; configs for other sources lack them."""
