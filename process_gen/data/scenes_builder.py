"""The scenes data set as a TFDS builder: ArrayRecord files with random access.

Example `i` of a split is a function of the config, the split and `i` alone. Its
prompt and its final scene are drawn before all that depends on the mode, so the
three modes hold the same prompts in the same order and their arms compare fairly.

The scene graphs in the metadata tell which pixels a turn leaves as they were (`with_kept`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from process_gen.data.schema import features, to_example
from process_gen.scenes.graph import Scene, scene_from_json
from process_gen.scenes.levels import Level, get_level
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.render import placed_mask
from process_gen.scenes.requests import categories
from process_gen.scenes.teacher import baseline, teach
from process_gen.trajectory.stages import Mode, Trajectory, Turn

SPLITS = ("train", "validation")
MIXTURE = {
    "single_object": 0.06,
    "two_object": 0.12,
    "counting": 0.14,
    "colors": 0.08,
    "position": 0.2,
    "color_attr": 0.14,
}
"""Probability of each of these categories; those with more objects share the rest, see `default_mixture`."""

HUNG_SHORT = 0.3
"""Probability of all categories of `MIXTURE` together on hung levels."""

ODDS = ("wrong", "misplan", "slip", "detour")
"""Probabilities of the teacher's mistakes and detours: fields of `ScenesConfig`, arguments of `teach`."""

KEPT = "kept"
"""The name of the field in `config.data.fields`; its kind is `mask`."""

SHARD_BYTES = 64 << 20
"""Bytes of raw pixels of one shard, about: a shard is held in memory while it is written."""
PROBED = 6
"""How many examples go into the digest in the name of a data set."""


@dataclasses.dataclass(eq=False, kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    """What a scenes data set holds.

    Attributes:
      level: of the scenes world.
      mode: `process`, or one of the baselines `plan_only` and `single_pass`.
      examples: trajectories for training.
      validation: trajectories for validation, drawn from other random streams.
      seed: of all random draws.
      wrong: share of drafts with a planted error that is inspected and refined.
      misplan: share of plans with a planted error that the draft shows; inspected and refined too.
      slip: share of drafts with an error that goes unnoticed until the next step.
      detour: share of trajectories with changes, swaps and removals.
      mixture: weight of each category; `default_mixture(level)` where empty.
    """

    level: str = "default"
    mode: str = Mode.PROCESS.value
    examples: int = 20_000
    validation: int = 500
    seed: int = 0
    wrong: float = 0.3
    misplan: float = 0.1
    slip: float = 0.08
    detour: float = 0.25
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        known = categories(get_level(self.level))
        if unknown := sorted(set(self.mixture) - set(known)):
            raise ValueError(
                f"data.mixture has unknown categories {unknown}; level {self.level!r} has {known}"
            )
        if self.mixture and not (min(self.mixture.values()) >= 0 < max(self.mixture.values())):
            raise ValueError(f"data.mixture has weights of 0 and more, one above 0, got {dict(self.mixture)}")

    @functools.cached_property
    def weights(self) -> dict[str, float]:
        """The share of each category, in the level's order; they sum to 1."""
        mixture = self.mixture or default_mixture(self.level)
        total = sum(mixture.values())
        return {name: mixture[name] / total for name in categories(self.level) if mixture.get(name)}

    def settings(self) -> dict[str, Any]:
        """Everything that the examples depend on."""
        fields = ("level", "mode", "examples", "validation", "seed", *ODDS)
        return {field: getattr(self, field) for field in fields} | {"mixture": self.weights}


def default_mixture(level: str) -> dict[str, float]:
    """Returns category -> weight: those of `MIXTURE`, the rest falling linearly over the longer categories.

    On hung levels the longer ones share 1 - `HUNG_SHORT` equally: only they tell looking from guessing.
    """
    longer = [name for name in categories(level) if name not in MIXTURE]
    if get_level(level).hung:
        share = (1 - HUNG_SHORT) / len(longer)
        short = {name: HUNG_SHORT * part / sum(MIXTURE.values()) for name, part in MIXTURE.items()}
        return short | dict.fromkeys(longer, share)
    parts = range(len(longer), 0, -1)
    share = (1 - sum(MIXTURE.values())) / sum(parts)
    return MIXTURE | {name: share * part for name, part in zip(longer, parts, strict=True)}


def scenes_config(**settings: Any) -> ScenesConfig:
    """Returns a config whose name holds a digest of its content.

    The digest covers the settings and the first examples, so that data of an older
    version of the teacher has another name. Keyword arguments are fields of `ScenesConfig`.
    """
    config = ScenesConfig(name="unnamed", **settings)
    digest = hashlib.sha256(json.dumps(config.settings(), sort_keys=True).encode())
    for index in range(PROBED):
        example = to_example(make_example(config, "train", index))
        for turn in example.pop("turns"):
            digest.update(turn.pop("image").tobytes())
            digest.update(json.dumps(turn, sort_keys=True).encode())
        digest.update(json.dumps(example, sort_keys=True).encode())
    name = f"{config.level}_{config.mode}_{config.examples}_{digest.hexdigest()[:10]}"
    return dataclasses.replace(config, name=name)


def make_example(config: ScenesConfig, split: str, index: int) -> Trajectory:
    """Returns one trajectory, the same one for the same arguments."""
    # Both splits draw prompts without held-out compositions: those are for the benchmark.
    seed = (config.seed, SPLITS.index(split), index)
    ours, theirs = (np.random.default_rng((*seed, stream)) for stream in range(2))
    names = list(config.weights)
    category = names[int(ours.choice(len(names), p=list(config.weights.values())))]
    request = sample_request(ours, config.level, category)
    uid = f"scenes-{config.level}-{config.mode}-{split}-{config.seed}-{index}"
    if config.mode == Mode.PROCESS.value:
        odds = {name: getattr(config, name) for name in ODDS}
        trajectory = teach(request, theirs, **odds)
    else:
        trajectory = baseline(request, theirs, Mode(config.mode))
    return dataclasses.replace(trajectory, uid=uid)


class Scenes(tfds.core.ShardBasedBuilder):
    """Trajectories of the scenes world, taught by an exact teacher."""

    VERSION = tfds.core.Version("2.0.0")
    builder_config: ScenesConfig

    def __init__(self, *, on_example: Callable[[Trajectory], None] | None = None, **kwargs: Any):
        """`on_example` is called with every trajectory as it is made (progress, statistics)."""
        self._on_example = on_example
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = get_level(self.builder_config.level).image_size
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,  # not README.md, which TFDS would take
            features=features((size, size)),
            metadata=tfds.core.MetadataDict(self.builder_config.settings()),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator]]]:
        del dl_manager
        config = self.builder_config
        length = max(16, SHARD_BYTES // (6 * 3 * get_level(config.level).image_size ** 2))
        return {
            split: [
                functools.partial(self._examples, split, range(start, min(start + length, count)))
                for start in range(0, count, length)
            ]
            for split, count in zip(SPLITS, (config.examples, config.validation), strict=True)
        }

    def _examples(self, split: str, part: range) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in part:
            trajectory = make_example(self.builder_config, split, index)
            if self._on_example is not None:
                self._on_example(trajectory)
            yield index, to_example(trajectory)


def scenes_builder(
    config: ScenesConfig, data_dir: str | pathlib.Path, on_example: Callable[[Trajectory], None] | None = None
) -> Scenes:
    """Returns the builder of a config under `data_dir`; silences TFDS's warning about an unlisted config."""
    folder = pathlib.Path(data_dir).expanduser().resolve()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return Scenes(config=config, data_dir=str(folder), on_example=on_example)
    finally:
        logging.set_verbosity(verbosity)


# ------------------------------------------------------------------- masks


def with_kept(trajectory: Trajectory) -> Trajectory:
    """Returns a trajectory of the teacher with a mask `kept`, [height, width] uint8, in each turn.

    The mask is 0 in the square around each object that is added, removed or changed between the canvas before
    the turn and the image that its flow target shows. It is 255 elsewhere.

    Raises KeyError: the metadata lack what the teacher records.
    """
    told = trajectory.metadata
    level = get_level(told["level"])
    turns: list[Turn] = []
    canvas = Scene(())
    notes = zip(trajectory.steps, told["scenes"], told["drafts"], told["mistakes"], strict=True)
    for step, right, drawn, mistake in notes:
        right = scene_from_json(right, level)
        drawn = right if drawn is None else scene_from_json(drawn, level)
        planned = mistake is not None and mistake["planned"]  # the draft shows what its wrong plan says
        changes = [(canvas, drawn if planned else right), *[(drawn, right)] * len(step.refines)]
        for turn, (before, after) in zip(step.turns, changes, strict=True):
            extra = {**turn.extra, KEPT: _same(before, after, level)}
            turns.append(dataclasses.replace(turn, extra=extra))
        canvas = right if step.refines else drawn
    return dataclasses.replace(trajectory, turns=tuple(turns))


def _same(before: Scene, after: Scene, level: Level) -> np.ndarray:
    kept = np.full((level.image_size, level.image_size), 255, np.uint8)
    for thing in {*before.objects} ^ {*after.objects}:
        x, y = round(thing.x), round(thing.y)
        kept[placed_mask(thing.shape, thing.size, x, y, level.image_size)[1]] = 0
    return kept
