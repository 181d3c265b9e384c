"""The scenes benchmark: the same requests for every checkpoint and every mode.

The score is the unweighted mean over eight groups: GenEval's six and prompts
for three and four objects. Five objects, more than most training prompts have,
are reported beside it. On split `heldout` every request holds a composition
that training never shows (`scenes.splits`); `train` tells what of a gap is due
to that.

A benchmark is fixed by level, split and seed. A smaller `per_group` gives a
prefix of a larger one, group by group, so that the subset judged during
training is a part of the whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from process_gen.common.names import check_name
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.requests import Request, categories
from process_gen.scenes.splits import SPLITS, Split

SCORED_GROUPS = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
    "three_objects",
    "four_objects",
)
"""The groups whose unweighted mean is the score."""

EXTRA_GROUPS = ("five_objects",)
"""Reported, but no part of the score."""

GROUPS = SCORED_GROUPS + EXTRA_GROUPS

_TRIES = 200  # draws for a prompt that the group does not have yet


class BenchmarkError(ValueError):
    """No such benchmark; the message names what there is."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One image to make.

    Attributes:
      request: the prompt and what it means.
      seed: of the sampler; the same in every mode, so that arms are paired.
    """

    request: Request
    seed: int

    @property
    def group(self) -> str:
        return self.request.category


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A fixed list of tasks.

    Attributes:
      level, split, seed, per_group, groups: what it was made from.
      tasks: group by group.
    """

    level: str
    split: Split
    seed: int
    per_group: int
    groups: tuple[str, ...]
    tasks: tuple[Task, ...] = dataclasses.field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Equal for benchmarks that ask for the same prompts with the same seeds."""
        lines = [(task.group, task.request.text, task.seed) for task in self.tasks]
        return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "split": self.split,
            "seed": self.seed,
            "per_group": self.per_group,
            "groups": list(self.groups),
            "fingerprint": self.fingerprint,
        }


def make_benchmark(
    level: str = "default",
    split: Split = "heldout",
    per_group: int = 40,
    seed: int = 0,
    groups: Sequence[str] = (),
) -> Benchmark:
    """Draws the tasks of a benchmark.

    Args:
      level: name of a level of the scenes world.
      split: `heldout`, or `train` for in-distribution prompts.
      per_group: tasks of each group. A group with fewer different prompts
        repeats some, with other seeds.
      seed: of the prompts and of the sampler's seeds.
      groups: all of `GROUPS` that the level has, by default.

    Raises:
      BenchmarkError: unknown split, group or level, or fewer than one per group.
    """
    if per_group < 1:
        raise BenchmarkError(f"per_group must be at least 1, got {per_group}")
    check_name(split, SPLITS, "split", BenchmarkError)
    known = categories(level)
    chosen = tuple(dict.fromkeys(groups)) if groups else tuple(g for g in GROUPS if g in known)
    for group in chosen:
        check_name(group, known, "group", BenchmarkError)
    tasks = tuple(task for group in chosen for task in _draw(level, split, per_group, seed, group))
    return Benchmark(level, split, seed, per_group, chosen, tasks)


def _draw(level: str, split: Split, count: int, seed: int, group: str) -> Iterable[Task]:
    """The first `count` tasks of a group, whatever else the benchmark holds."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{split} {group}".encode())])
    seen: set[str] = set()
    for index in range(count):
        for _ in range(_TRIES):
            request = sample_request(rng, level, group, split)
            if request.text not in seen:
                break
        seen.add(request.text)
        yield Task(request, zlib.crc32(f"{seed} {group} {index}".encode()) >> 1)
