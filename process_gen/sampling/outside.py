"""External planners and inspectors: another model or an oracle that writes texts in the model's place.

A planner is asked wherever the model would begin another step or end; it returns the next plan, or None if
the drawing is done. An inspector is asked about every image after which a correction may follow; it returns
an inspection and what to correct, if anything. Their texts enter the trajectory as the model's own would, so
later images depend on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Turn


@dataclasses.dataclass(frozen=True)
class Inspection:
    """An inspector's answer.

    Attributes:
      text: the inspection, which comes after the image; None for no text.
      correction: the instruction of the refine turn that follows; None for no correction.
    """

    text: str | None = None
    correction: str | None = None


@dataclasses.dataclass(frozen=True)
class Unsaid:
    """Returned when there is no answer: the trajectory is given up. `reason` is a message for the user."""

    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Situation:
    """A trajectory that a planner or an inspector is asked about.

    Attributes:
      prompt: the text that is drawn.
      turns: so far; for an inspector the last one is the one to inspect, and has no text after its image.
      room: steps that may still begin; 0 asks a planner only whether it is done.
      check: raises PromptError for an answer (`Plan`, `Inspection`) that does not fit the model.
    """

    prompt: str
    turns: tuple[Turn, ...]
    room: int
    check: Callable[[Plan | Inspection], None]


Planner = Callable[[Sequence[Situation]], Sequence[Plan | Unsaid | None]]
"""The next plan of each trajectory, None where it is done (not before its first turn); called by threads."""

Inspector = Callable[[Sequence[Situation]], Sequence[Inspection | Unsaid]]
"""An inspection of the last image of each trajectory; called by threads."""


@dataclasses.dataclass(frozen=True)
class Outside:
    """The planner and the inspector that replace the model's own texts; none by default."""

    planner: Planner | None = None
    inspector: Inspector | None = None
