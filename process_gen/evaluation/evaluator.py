"""Runs a predict function over a benchmark and judges what comes back."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from process_gen.evaluation import process
from process_gen.evaluation.benchmark import SCORED_GROUPS, Benchmark, Task
from process_gen.evaluation.intervals import Interval, mean_of_groups, wilson
from process_gen.evaluation.reading import verdict_of
from process_gen.sampling import Sampler
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Mode

Predict = Callable[[Sequence[str], Sequence[int]], Sequence[SampledTrajectory]]
"""Prompts and seeds -> one trajectory each, in order."""

Show = Callable[[str], None]
"""Is told how far something is, in words."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes:
      group, prompt, seed: the task.
      ok: the judge's verdict on the final image.
      failures: why not, kinds of `reading.FAILURES`.
      steps, images: how many; an image is a draft or a correction.
      sampling_steps: Euler steps over all its images.
      corrections: how many steps corrected their draft.
      stopped: `model` or `cap`.
      seconds: wall time, shared out among prompts that were sampled together.
    """

    group: str
    prompt: str
    seed: int
    ok: bool
    failures: Sequence[str]
    steps: int
    images: int
    corrections: int
    sampling_steps: int
    stopped: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """The outcomes of one mode, and everything that follows from them.

    Attributes:
      mode: name of the mode.
      outcomes: in the order of the benchmark's tasks.
      counts: of what happened on the way (see `process`).
      trajectories: with verdicts; empty when read back from a file.
    """

    mode: str
    outcomes: tuple[Outcome, ...]
    counts: process.Counts
    trajectories: tuple[SampledTrajectory, ...] = dataclasses.field(default=(), repr=False)

    def verdicts(self, groups: Sequence[str] | None = None) -> dict[str, list[bool]]:
        """Outcomes per group, in the order of the tasks."""
        found: dict[str, list[bool]] = {}
        for one in self.outcomes:
            if groups is None or one.group in groups:
                found.setdefault(one.group, []).append(one.ok)
        return found

    @property
    def groups(self) -> dict[str, Interval]:
        """The share of right final images of every group."""
        return {group: wilson(sum(oks), len(oks)) for group, oks in self.verdicts().items()}

    @property
    def score(self) -> Interval | None:
        """The unweighted mean over the scored groups that there are; None where there is none."""
        scored = [interval for group, interval in self.groups.items() if group in SCORED_GROUPS]
        return mean_of_groups(scored) if scored else None

    @property
    def failures(self) -> dict[str, int]:
        """How many images failed for each kind of reason, the most frequent first."""
        counted = collections.Counter(kind for one in self.outcomes for kind in one.failures)
        return dict(counted.most_common())

    def means(self) -> dict[str, float]:
        """Costs and habits, per image or as a share of all."""
        outcomes = self.outcomes
        return {
            "steps": statistics.fmean(one.steps for one in outcomes),
            "images_drawn": statistics.fmean(one.images for one in outcomes),
            "sampling_steps": statistics.fmean(one.sampling_steps for one in outcomes),
            "seconds": statistics.fmean(one.seconds for one in outcomes),
            "refined_images": statistics.fmean(one.corrections > 0 for one in outcomes),
            "refined_steps": sum(one.corrections for one in outcomes) / sum(one.steps for one in outcomes),
            "stopped_by_cap": statistics.fmean(one.stopped == "cap" for one in outcomes),
        }

    def scalars(self) -> Iterator[tuple[str, float]]:
        """(name, value) pairs for a metric writer."""
        if self.score:
            yield f"{self.mode}/score", self.score.mean
        for group, interval in self.groups.items():
            yield f"{self.mode}/score/{group}", interval.mean
        for name, value in self.means().items():
            yield f"{self.mode}/{name}", value
        for name, interval in self.counts.shares().items():
            yield f"{self.mode}/process/{name}", interval.mean
        for kind, number in self.failures.items():
            yield f"{self.mode}/failures/{kind}", number / len(self.outcomes)

    def selection(self, most: int) -> list[SampledTrajectory]:
        """Some trajectories to look at: of every group in turn, a wrong and a right one."""
        queues: dict[tuple[str, bool], list[SampledTrajectory]] = {}
        for one, trajectory in zip(self.outcomes, self.trajectories, strict=False):
            queues.setdefault((one.group, one.ok), []).append(trajectory)
        # Wrong and right ones take turns, so that a short selection has both.
        wrong, right = ([queue for key, queue in queues.items() if key[1] is ok] for ok in (False, True))
        turns = [queue for pair in itertools.zip_longest(wrong, right) for queue in pair if queue]
        picked = [one for row in itertools.zip_longest(*turns) for one in row if one]
        return picked[:most]

    def to_json(self) -> dict[str, Any]:
        return {
            "score": self.score.to_json() if self.score else None,
            "groups": {g: {**i.to_json(), "n": len(self.verdicts()[g])} for g, i in self.groups.items()},
            **self.means(),
            "failures": self.failures,
            "process": {name: interval.to_json() for name, interval in self.counts.shares().items()},
            "counts": self.counts.to_json(),
            "outcomes": [dataclasses.asdict(one) for one in self.outcomes],
        }

    @classmethod
    def from_json(cls, mode: str, data: Mapping[str, Any]) -> Scores:
        """Reads what `to_json` wrote; everything derived is derived again."""
        outcomes = tuple(Outcome(**one) for one in data["outcomes"])
        return cls(mode, outcomes, process.Counts.from_json(data["counts"]))


def predict_with(sampler: Sampler, mode: str | Mode, show: Show | None = None) -> Predict:
    """A predict function that samples in one mode.

    Args:
      sampler: whose settings count but for the mode.
      mode: of every trajectory.
      show: is told how far it is, after every round of turns.
    """
    sampler = sampler.with_config(mode=mode)

    def predict(prompts: Sequence[str], seeds: Sequence[int]) -> list[SampledTrajectory]:
        drawn: dict[int, SampledTrajectory] = {}
        for progress in sampler.stream(prompts, seeds):
            drawn.update(progress.finished)
            if show:
                show(f"{mode}: {progress.done} of {progress.total} prompts")
        return [drawn[i] for i in range(len(prompts))]

    return predict


def evaluate(predict: Predict, benchmark: Benchmark, mode: Mode = Mode.PROCESS) -> Scores:
    """Samples every task and judges the final images.

    Args:
      predict: prompts and seeds -> one trajectory each, in order. It is called
        once, with everything.
      benchmark: the tasks.
      mode: what `predict` does; names the scores.

    Raises:
      ValueError: `predict` answered something else than it was asked.
    """
    tasks = benchmark.tasks
    found = predict([task.request.text for task in tasks], [task.seed for task in tasks])
    judged, outcomes, counts = [], [], process.Counts()
    for task, trajectory in zip(tasks, found, strict=True):
        if trajectory.prompt != task.request.text:
            raise ValueError(f"predict answered {task.request.text!r} with {trajectory.prompt!r}")
        verdict = verdict_of(task.request, trajectory.image)
        judged.append(dataclasses.replace(trajectory, verdict=verdict))
        outcomes.append(_outcome(task, judged[-1]))
        counts += process.count(trajectory, task.request)
    return Scores(mode.value, tuple(outcomes), counts, tuple(judged))


def _outcome(task: Task, trajectory: SampledTrajectory) -> Outcome:
    steps = trajectory.steps
    return Outcome(
        group=task.group,
        prompt=task.request.text,
        seed=task.seed,
        ok=trajectory.verdict["ok"],
        failures=trajectory.verdict["failures"],
        steps=len(steps),
        images=len(trajectory.turns),
        corrections=sum(bool(step.refines) for step in steps),
        sampling_steps=trajectory.sampling_steps,
        stopped=trajectory.stopped,
        seconds=trajectory.seconds,
    )
