"""Somebody else who plans or inspects while the model draws: another model, or an oracle.

A planner is asked wherever the model would begin another step or end, and says what the step does, or that
nothing is left to do. An inspector is asked about every image after which a correction may follow, and
says what it sees and what to correct, if anything. Their words stand in the trajectory as the model's own
would: what is drawn follows from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Turn


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What somebody says of an image.

    Attributes:
      text: stands after the image; None for nothing.
      correction: the instruction of a correction; None where none is to follow.
    """

    text: str | None = None
    correction: str | None = None


@dataclasses.dataclass(frozen=True)
class Unsaid:
    """In place of an answer: there is none, and the trajectory is given up. `reason` is fit for a user."""

    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Situation:
    """What somebody is asked about.

    Attributes:
      prompt: the text that is drawn.
      turns: so far; for an inspector the last one is the one to inspect, and has no text after its image.
      room: steps that may still begin; 0 asks a planner only whether it is done.
      check: complains of an answer (a `Plan`, an `Inspection`) that the model has no room for, PromptError.
    """

    prompt: str
    turns: tuple[Turn, ...]
    room: int
    check: Callable[[Plan | Inspection], None]


Planner = Callable[[Sequence[Situation]], Sequence[Plan | Unsaid | None]]
"""The next step of each trajectory, None where it is done (after a turn at least). Threads may call it."""

Inspector = Callable[[Sequence[Situation]], Sequence[Inspection | Unsaid]]
"""What there is to say of the last image of each trajectory. Threads may call it."""


@dataclasses.dataclass(frozen=True)
class Outside:
    """Who takes the model's place; nobody by default."""

    planner: Planner | None = None
    inspector: Inspector | None = None
