"""The first stage of an evaluation: images, each drawn once and kept.

OUT/draws/<task>-<settings>-<hash>/   a folder for one task, one checkpoint and one way to draw
    settings.json                     what its hash is made from
    trajectories.jsonl, images/       as `process_gen.sample` writes them; each trajectory once it is finished

The name of a trajectory holds the hash of its prompt. So images are addressed by checkpoint, task version,
prompt, seed and settings: nothing is drawn twice, and nothing is mistaken for something else.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from process_gen.evaluation.arms import Arm
from process_gen.evaluation.outsiders import ROLES, described
from process_gen.evaluation.tasks.base import Doc, Task, TaskError
from process_gen.reports.listing import Listing
from process_gen.sampling import Sampler
from process_gen.trajectory.record import to_json

ProgressFn = Callable[[str], None]
"""Gets progress as text; an exception that it raises ends the work."""


def silent(text: str) -> None:
    """Shows nothing."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """One trajectory to draw.

    Attributes:
      doc: the prompt it is for.
      seed: one of the evaluation's `--seeds`.
      index: which of the trajectories for this prompt and seed.
      prompt: the text that the model gets, which an arm may have rewritten.
    """

    doc: Doc
    seed: int
    index: int
    prompt: str

    @property
    def uid(self) -> str:
        """Its name on disk: prompt, seed and index, and a hash of what was asked."""
        words = [self.doc.doc_id, self.doc.doc_hash, self.prompt]
        asked = hashlib.sha256(json.dumps(words).encode()).hexdigest()
        plain = re.sub(r"[^\w.-]+", "_", self.doc.doc_id, flags=re.ASCII)[:60]
        return f"{plain}_s{self.seed}_{self.index}_{asked[:8]}"

    @property
    def sampler_seed(self) -> int:
        """Seed of its random key: the same for every arm and checkpoint, so that comparisons are paired."""
        more = f" {self.index}" if self.index else ""
        return zlib.crc32(f"{self.seed} {self.doc.doc_id}{more}".encode()) >> 1


def take(docs: Sequence[Doc], limit: int = 0, per_group: int = 0) -> list[Doc]:
    """Takes some prompts, in the task's order; those of smaller limits are among those of larger ones.

    `limit` is the most in all, taken from the groups in turn, `per_group` the most of one; 0 is no limit.
    """
    groups = collections.defaultdict(list)
    for doc in docs:
        groups[doc.group].append(doc)
    some = [found[: per_group or None] for found in groups.values()]
    turns = filter(None, itertools.chain.from_iterable(itertools.zip_longest(*some)))
    taken = {doc.doc_id for doc in itertools.islice(turns, limit or None)}
    return [doc for doc in docs if doc.doc_id in taken]


def place(
    task: Task, arm: Arm, checkpoint: Mapping[str, Any], sampler: Sampler
) -> tuple[str, dict[str, Any]]:
    """The folder of an arm's images, relative to the evaluation's, and the settings that its name hashes."""
    how = to_json(dataclasses.asdict(sampler.config))
    del how["seed"]  # every trajectory has its own
    shape = list(sampler.model.layout.image_size)
    told = {"task": task.name, "version": task.version, **checkpoint}
    settings = {**told, "image_size": shape, **how, **described(sampler.outside)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    changed = {**arm.settings, **arm.outside}
    words = [f"{key}={value}" for key, value in sorted(changed.items()) if key != "mode"]
    name = re.sub(r"[^\w.=-]+", "_", "-".join([task.name, how["mode"], *words]))
    return f"draws/{name}-{digest[:8]}", settings


def draw(
    sampler: Sampler,
    wanted: Sequence[Draw],
    listing: Listing,
    host: tuple[int, int] = (0, 1),
    show: ProgressFn = silent,
    warm: bool = True,
) -> None:
    """Draws this host's share of what is not listed yet; each trajectory is written when it is finished.

    Args:
      sampler: with the settings of the arm.
      wanted, listing: what to draw, and what there is.
      host: index of this host, and how many there are.
      warm: draws the first prompt once before, so that seconds per image do not count compilation.

    Raises:
      ReportError: the folder cannot be written.
      TaskError: an outside planner or inspector had no answer for some trajectories; the others are drawn.
      ServiceError: its endpoint cannot be used.
    """
    mine = [one for n, one in enumerate(wanted) if n % host[1] == host[0] and one.uid not in listing.uids]
    if not mine:
        return
    prompts, seeds = [one.prompt for one in mine], [one.sampler_seed for one in mine]
    for outsider in (getattr(sampler.outside, role) for role in ROLES):
        if hasattr(outsider, "announce"):  # prints what it may cost
            outsider.announce(prompts, sampler.config.max_turns + 1, sampler.model.layout.image_size)
    if warm:  # without outsiders, whose answers may cost money
        collections.deque(sampler.with_outside().stream(prompts[:1], seeds[:1]), maxlen=0)
    lost: dict[int, str] = {}
    for progress in sampler.stream(prompts, seeds):
        lost.update(progress.lost)
        for number, trajectory in progress.finished:
            listing.add(dataclasses.replace(trajectory, uid=mine[number].uid))
        show(f"{listing.folder.name}: {progress.done} of {progress.total} trajectories")
    if lost:
        raise TaskError(
            f"{len(lost)} of {len(mine)} trajectories got no usable answer from outside models "
            f"({next(iter(lost.values()))}): the same command asks again, and --stage=judge judges the others"
        )


def listed(listing: Listing, wanted: Sequence[Draw]) -> Iterator[tuple[Draw, Any]]:
    """Yields the wanted trajectories that are listed, each as `Draw` and record."""
    by_uid = {one.uid: one for one in wanted}
    for record in listing.records():
        if record.uid in by_uid:
            yield by_uid[record.uid], record
