"""The values that each key of a config may have."""

from __future__ import annotations

from typing import Any

from process_gen.common import ranges
from process_gen.distributed.offload import PARTS
from process_gen.scenes.levels import LEVELS
from process_gen.trajectory.stages import Mode


def _is_size(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(ranges.COUNT.holds, value))


def _are_sizes(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(_is_size, value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(one, str) and one for one in value)


def _is_grid(value: Any) -> bool:
    return _is_size(value) or value in ((0, 0), [0, 0])


DECAY = ranges.Range("at least 0 and below 1", lambda value: ranges.is_number(value) and 0 <= value < 1)
FLAG = ranges.Range("True or False", lambda value: isinstance(value, bool))
TEXT = ranges.Range("a text", lambda value: isinstance(value, str))

RANGES: dict[str, ranges.Range] = {
    "seed": ranges.SEED,
    "layout.image_size": ranges.Range("two whole numbers above 0, e.g. '(32, 32)'", _is_size),
    "layout.vit_grid": ranges.Range("two whole numbers above 0, or '(0, 0)' for none", _is_grid),
    "layout.prompt_image": FLAG,
    **dict.fromkeys(("layout.prompt", "layout.turns", "layout.trajectories", "layout.copies"), ranges.COUNT),
    **dict.fromkeys(("layout.instruction", "layout.before", "layout.after"), ranges.COUNT_OR_OFF),
    "layout.corrections": ranges.COUNT_OR_OFF,
    **dict.fromkeys(("data.tokenizer", "data.latents"), TEXT),
    "data.mode": ranges.one_of(*(mode.value for mode in Mode)),
    "data.validation": ranges.Range(
        "a share below 0.5", lambda value: ranges.is_number(value) and 0 <= value < 0.5
    ),
    "data.on_error": ranges.one_of("fail", "skip"),
    "data.threads": ranges.COUNT_OR_OFF,
    "data.on_long": ranges.one_of("split", "drop"),
    "data.buckets": ranges.Range(
        "sizes of images, e.g. '((512, 512), (448, 576))', one alone '((448, 576),)', or ()", _are_sizes
    ),
    "flow.time_mean": ranges.Range("a number", ranges.is_number),
    **dict.fromkeys(("flow.time_std", "flow.time_shift"), ranges.POSITIVE),
    **dict.fromkeys(("flow.drop_text", "flow.drop_images", "flow.context_noise_share"), ranges.SHARE),
    **dict.fromkeys(("flow.drop_latents", "flow.drop_vit"), ranges.SHARE),
    "flow.context_noise": ranges.NOT_NEGATIVE,
    "flow.sample_latents": FLAG,
    "optimizer.name": ranges.one_of("adamw", "muon"),
    **dict.fromkeys(
        ("optimizer.learning_rate", "optimizer.muon_learning_rate", "optimizer.eps", "optimizer.clip"),
        ranges.POSITIVE,
    ),
    **dict.fromkeys(("optimizer.b1", "optimizer.b2", "optimizer.ema"), DECAY),
    "optimizer.ema_warmup": FLAG,
    "optimizer.freeze": ranges.Range(
        "patterns of names, e.g. ('vit/*', 'connector/*'), one alone ('vit/*',), or ()", _are_texts
    ),
    "optimizer.final_share": ranges.SHARE,
    "optimizer.moment_dtype": ranges.one_of("float32", "bfloat16"),
    "optimizer.weight_decay": ranges.NOT_NEGATIVE,
    "optimizer.warmup_steps": ranges.COUNT_OR_OFF,
    **dict.fromkeys(("train.batch_size", "train.steps", "train.accumulate"), ranges.COUNT),
    **dict.fromkeys(("train.log_every", "train.checkpoint_every", "train.keep"), ranges.COUNT),
    "train.local_every": ranges.COUNT_OR_OFF,
    **dict.fromkeys(("train.init", "train.local_dir"), TEXT),
    "train.max_nonfinite": ranges.COUNT,
    "train.own.share": ranges.SHARE,
    **dict.fromkeys(("train.own.every", "train.own.keep"), ranges.COUNT),
    "train.offload": ranges.one_of(*PARTS),
    **dict.fromkeys(("eval.per_group", "eval.batch_size"), ranges.COUNT),
    **dict.fromkeys(("eval.every", "eval.final_per_group", "eval.losses_every"), ranges.COUNT_OR_OFF),
    "eval.loss_batches": ranges.COUNT,
}
"""Dotted key -> its allowed values. Keys that an object checks when it is built are not repeated here."""

SCENES_RANGES: dict[str, ranges.Range] = {
    "data.level": ranges.one_of(*LEVELS),
    "data.examples": ranges.COUNT,
    "data.data_dir": TEXT,
    "data.seed": ranges.SEED,
    **dict.fromkeys(("data.wrong", "data.misplan", "data.slip", "data.detour"), ranges.SHARE),
}
"""The same, of the keys that only `data.source=scenes` reads; configs for other sources lack them."""

SOURCE_RANGES: dict[str, ranges.Range] = {"weight": ranges.POSITIVE, "path": TEXT}
"""The same for keys that an entry of `data.sources` has besides those of `data`."""
