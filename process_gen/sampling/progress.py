"""How far a run of the sampler is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from process_gen.sampling.config import PromptError
from process_gen.trajectory.sampled import SampledTrajectory

Finished = tuple[tuple[int, SampledTrajectory], ...]
"""Numbers of prompts, and their trajectories."""

Lost = tuple[tuple[int, str], ...]
"""Numbers of prompts whose trajectories were given up, each with the reason."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after one round of turns.

    Attributes:
      done, total: trajectories finished or given up, and asked for.
      turns: turns drawn so far, over all trajectories.
      finished: those that ended in this round.
      lost: those that were given up in it, since somebody outside had nothing to say.
    """

    done: int
    total: int
    turns: int
    finished: Finished
    lost: Lost = ()


def in_order(stream: Iterator[Progress], count: int) -> list[SampledTrajectory]:
    """All of `count` trajectories in the order of their numbers; PromptError where one was given up."""
    drawn: dict[int, SampledTrajectory] = {}
    for progress in stream:
        for number, why in progress.lost:
            raise PromptError(f"trajectory {number} was given up: {why}")
        drawn.update(progress.finished)
    return [drawn[i] for i in range(count)]
