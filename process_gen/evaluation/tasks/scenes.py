"""The scenes benchmark: coloured shapes, read back by an exact parser.

The score is the unweighted mean over eight groups: GenEval's six and prompts
for three and four objects. Five objects, more than most training prompts have,
are reported beside it, and six on a level without cells. On split `heldout` every prompt
holds a composition that training never shows (`scenes.splits`); the score on split `train`
tells how much of a lower score is due to that.

The prompts are fixed by level, split and seed. A smaller `per_group` gives a
prefix of a larger one, group by group.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from process_gen.common.names import check_name
from process_gen.evaluation import process
from process_gen.evaluation.reading import verdict_of
from process_gen.evaluation.tasks.base import Doc, Judge, Judgement, Task, TaskError
from process_gen.scenes import get_level
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.requests import GENEVAL_CATEGORIES, Request, categories
from process_gen.scenes.splits import SPLITS
from process_gen.trajectory.sampled import SampledTrajectory

SCORED_GROUPS = (*GENEVAL_CATEGORIES, "three_objects", "four_objects")
"""The groups whose unweighted mean is the score."""

GROUPS = (*SCORED_GROUPS, "five_objects")
"""Those that are reported; the last one is no part of the score."""

TREE_GROUPS = ("three_objects", "four_objects", "five_objects", "six_objects")
"""Groups whose unweighted mean, `trees`, is the main score on levels without cells.

There the relations of their prompts form a tree, from which a single pass must derive all places itself.
"""

_TRIES = 200  # draws for a prompt that the group does not have yet


@dataclasses.dataclass(frozen=True)
class Scenes(Task):
    """The benchmark.

    Attributes:
      level: name of a level of the scenes world (`scenes.levels`).
      split: `heldout`, or `train` for in-distribution prompts.
      per_group: prompts of each group. A group with fewer different prompts repeats some.
      prompt_seed: what the prompts are drawn with.
      groups: names with commas between them; by default those of `GROUPS`, without cells all of the level.

    Raises:
      TaskError: unknown split, group or level, or fewer than one per group.
    """

    name = "scenes"
    version = "1"
    traced = True
    level: str = "default"
    split: str = "heldout"
    per_group: int = 40
    prompt_seed: int = 0
    groups: str = ""

    def __post_init__(self):
        if self.per_group < 1:
            raise TaskError(f"scenes.per_group must be at least 1, got {self.per_group}")
        check_name(self.split, SPLITS, "split", TaskError)
        try:
            known = categories(self.level)
        except (KeyError, ValueError) as error:
            raise TaskError(str(error)) from None
        for group in self._groups:
            check_name(group, known, "group", TaskError)

    @property
    def _groups(self) -> tuple[str, ...]:
        chosen = tuple(name.strip() for name in self.groups.split(",") if name.strip())
        known = categories(self.level)
        if not get_level(self.level).hung:  # there all: each shows how the score falls with one more object
            known = tuple(group for group in GROUPS if group in known)
        return chosen or known

    @functools.cached_property
    def requests(self) -> Mapping[str, Request]:
        """`doc_id` -> what its prompt means."""
        return dict(pair for group in self._groups for pair in self._draw(group))

    def _draw(self, group: str) -> Iterator[tuple[str, Request]]:
        """Draws the prompts of a group; they do not depend on the other groups."""
        rng = np.random.default_rng([self.prompt_seed, zlib.crc32(f"{self.split} {group}".encode())])
        seen: set[str] = set()
        for index in range(self.per_group):
            for _ in range(_TRIES):
                request = sample_request(rng, self.level, group, self.split)
                if request.text not in seen:
                    break
            seen.add(request.text)
            yield f"{group} {index}", request

    def docs(self) -> Sequence[Doc]:
        target = {"level": self.level}
        return [Doc(name, one.text, one.category, target) for name, one in self.requests.items()]

    def judge(self) -> Judge:
        return ScenesJudge(self)

    def formulas(self, groups: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        scores = {"trees": TREE_GROUPS} if get_level(self.level).hung else {}
        found = {
            name: [group for group in groups if group in chosen]
            for name, chosen in (scores | {"score": SCORED_GROUPS}).items()
        }
        return {name: dict.fromkeys(some, 1 / len(some)) for name, some in found.items() if some}

    def process(self, doc: Doc, trajectory: SampledTrajectory) -> process.Counts:
        return process.count(trajectory, self.requests[doc.doc_id])


@dataclasses.dataclass(frozen=True)
class ScenesJudge:
    """The exact parser and the judge of the scenes world."""

    task: Scenes
    name = "scenes-parser"
    revision = "2"
    protocol = "scenes"
    workers = 1

    def __call__(self, doc: Doc, image: np.ndarray) -> Judgement:
        side = get_level(self.task.level).image_size
        if image.shape[:2] != (side, side):
            size = " x ".join(map(str, image.shape[:2]))
            raise TaskError(f"the scenes judge reads images of {side} x {side} pixels, this one has {size}")
        found = verdict_of(self.task.requests[doc.doc_id], image)
        return Judgement(float(found["ok"]), tuple(found["constraints"]), tuple(found["failures"]))
