"""The data model: a trajectory has steps, a step has turns, and each part of a turn is a stage.

A trajectory draws a prompt the way people do: each step plans a stroke in text,
sketches it as an image, inspects the draft, and refines it only where the
inspection found a conflict (arXiv 2604.04746, section 3). The model works in
turns, each of which is a text, an image, and a text:

    kind      before   image     after
    draft     plan     sketch    inspect
    refine    refine   refined   inspect

A step is a draft turn and the refine turns that follow it. Either text may be
absent; the image only in a refine turn that ends a trajectory and was not drawn.
So a step without an inspection, a draft that is corrected twice, or an inspection
of a correction need no extra field.

`TURN_FIELDS` is the one table of what a turn holds: the record on disk, the
batch, fake batches and the reader of folders are derived from it.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from process_gen.trajectory import markup
from process_gen.trajectory.markup import Malformed, Plan


class Stage(enum.StrEnum):
    """The four stages of a step, in the order in which they happen."""

    PLAN = "plan"
    SKETCH = "sketch"
    INSPECT = "inspect"
    REFINE = "refine"


def stage_bits(stages: Collection[Stage]) -> int:
    """A bit mask of stages, the first stage the lowest bit; the values of `Batch.supervised`."""
    return sum(1 << bit for bit, stage in enumerate(Stage) if stage in stages)


class Mode(enum.StrEnum):
    """How much of the process a trajectory goes through: every stage, or one of the two baselines.

    `PLAN_ONLY` is one plan followed by one image, `SINGLE_PASS` one image straight from the prompt.
    """

    PROCESS = "process"
    PLAN_ONLY = "plan_only"
    SINGLE_PASS = "single_pass"


@dataclasses.dataclass(frozen=True)
class TurnField:
    """One line of `TURN_FIELDS`.

    Attributes:
      name: as in `Turn`, in records and in the batch, where a text is called `<name>_tokens`.
      type: `text` (absent: None), `image`, `flag` or `weight`.
      default: what a record without the field means.
    """

    name: str
    type: Literal["text", "image", "flag", "weight"]
    default: Any = None


TURN_FIELDS = (
    TurnField("refines", "flag", False),
    TurnField("before", "text"),
    TurnField("image", "image"),
    TurnField("after", "text"),
    TurnField("image_ok", "flag", True),
    TurnField("before_weight", "weight", 1.0),
    TurnField("image_weight", "weight", 1.0),
    TurnField("after_weight", "weight", 1.0),
)
"""What a turn holds, in the order of `Turn`'s attributes."""


def turn_fields(*types: str) -> tuple[TurnField, ...]:
    """The lines of `TURN_FIELDS` of some types."""
    return tuple(field for field in TURN_FIELDS if field.type in types)


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """A text, an image, and a text.

    Attributes:
      image: [height, width, 3] uint8; None only in a refine turn that ends a trajectory
        and whose correction was not drawn: training then uses its text alone.
      before: the text before the image with its markup, `<ins>..</ins><des>..</des>` of a
        plan or `<refine>..</refine>`; None where there is none. Texts that a model
        wrote may be malformed.
      after: what the inspection says of the image; None where there is none.
      refines: whether the turn corrects the image before it, instead of drafting the next one.
      image_ok: whether the image is as it should be. A wrong image stands in the
        context and is never a flow target: the target is then the last image of
        its step, or nothing where that one is wrong too.
      before_weight, image_weight, after_weight: of the losses on the texts and on
        the flow target. 0 makes a part context only.
      extra: user-defined fields by name (`layout.fields`), arrays and numbers; missing ones become zeros.

    Raises:
      ValueError: an image of another shape or dtype, or none in a draft or before an inspection.
    """

    image: np.ndarray | None
    before: str | None = None
    after: str | None = None
    refines: bool = False
    image_ok: bool = True
    before_weight: float = 1.0
    image_weight: float = 1.0
    after_weight: float = 1.0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        image = self.image
        if image is None:
            if not self.refines or self.after is not None:
                raise ValueError("only a refine turn without an inspection may lack its image")
            return
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"an image must be [height, width, 3] uint8, got {list(image.shape)} {image.dtype}"
            )

    @property
    def plan(self) -> Plan | Malformed | None:
        """What a draft sets out to do; `Malformed` where its text is no plan."""
        return None if self.refines or self.before is None else markup.parse_plan(self.before)

    @property
    def instruction(self) -> str | Malformed | None:
        """What a refine turn corrects; `Malformed` where its text is no such instruction."""
        return None if not self.refines or self.before is None else markup.parse_refine(self.before)

    @property
    def parsed(self) -> Plan | str | Malformed | None:
        """The text before the image: `plan` or `instruction`."""
        return self.instruction if self.refines else self.plan


def draft(image: np.ndarray, plan: Plan | None = None, inspect: str | None = None, **fields: Any) -> Turn:
    """A draft turn; `fields` are others of `Turn`. Raises ValueError where a text holds a special token."""
    before = None if plan is None else markup.write_plan(plan)
    return Turn(image, before, inspect and markup.check_plain(inspect, "an inspection"), **fields)


def refinement(image: np.ndarray | None, instruction: str, inspect: str | None = None, **fields: Any) -> Turn:
    """A refine turn; `fields` are others of `Turn`. Raises ValueError where a text holds a special token."""
    after = inspect and markup.check_plain(inspect, "an inspection")
    return Turn(image, markup.write_refine(instruction), after, refines=True, **fields)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A draft turn and the refine turns that follow it, in order."""

    draft: Turn
    refines: tuple[Turn, ...] = ()

    @property
    def turns(self) -> tuple[Turn, ...]:
        return (self.draft, *self.refines)

    @property
    def plan(self) -> Plan | Malformed | None:
        return self.draft.plan

    @property
    def sketch(self) -> np.ndarray:
        """The draft, [height, width, 3] uint8."""
        return self.draft.image

    @property
    def inspect(self) -> str | None:
        """What the inspection says of the draft."""
        return self.draft.after

    @property
    def refine(self) -> str | Malformed | None:
        """The instruction of the first correction, None where there is none."""
        return self.refines[0].instruction if self.refines else None

    @property
    def refined(self) -> np.ndarray | None:
        """The image that the last correction leaves, None where there is none or it was not drawn."""
        return self.refines[-1].image if self.refines else None

    @property
    def image(self) -> np.ndarray:
        """The visual state that the step leaves, [height, width, 3] uint8."""
        return _last_image(self.turns)


def _last_image(turns: Sequence[Turn]) -> np.ndarray:
    """The image of the last turn that has one."""
    return next(turn.image for turn in reversed(turns) if turn.image is not None)


def steps_of(turns: Sequence[Turn]) -> tuple[Step, ...]:
    """Turns grouped into steps."""
    starts = [place for place, turn in enumerate(turns) if not turn.refines]
    spans = itertools.pairwise([*starts, len(turns)])
    return tuple(Step(turns[start], tuple(turns[start + 1 : end])) for start, end in spans)


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """A prompt, the turns that draw it, and where it came from.

    Attributes:
      prompt: the text that the final image has to satisfy.
      turns: at least one; the first one is a draft.
      uid: names the trajectory.
      place: the file and line that it was read from, for messages; "" where there is none.
      metadata: what else the source knows (JSON-like), e.g. the scene graph.
      prompt_image: an input image that the prompt shows after its text, [height, width, 3] uint8.
      instruction: what the prompt says after that image, e.g. how to edit it.
      latents: its images as N latent tokens of V values, where they were encoded ahead of time:
        `image` [turns, N, V] and `prompt` [N, V], zeros where absent.
      source: which source of a mixture it comes from, counted from 0.
      supervised: the stages that have losses.
      context_turns: how many of its first turns have no losses. A long trajectory is split into parts, and
        all but the first part repeat turns of the part before as context.
      ends: whether it ends with its last turn; False for a part that another part continues.

    Raises:
      ValueError: no turns, a refine turn as the first one, or a turn before the last without an image.
    """

    prompt: str
    turns: tuple[Turn, ...]
    uid: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompt_image: np.ndarray | None = None
    instruction: str = ""
    latents: Mapping[str, np.ndarray] | None = None
    source: int = 0
    supervised: frozenset[Stage] = frozenset(Stage)
    context_turns: int = 0
    ends: bool = True
    place: str = dataclasses.field(default="", compare=False)

    def __post_init__(self):
        if not self.turns:
            raise ValueError(f"trajectory {self.uid!r} has no turns")
        if self.turns[0].refines:
            raise ValueError(
                f"trajectory {self.uid!r} begins with a refine turn: there is nothing to correct"
            )
        if any(turn.image is None for turn in self.turns[:-1]):
            raise ValueError(f"trajectory {self.uid!r}: a turn without an image is not its last one")

    @property
    def steps(self) -> tuple[Step, ...]:
        return steps_of(self.turns)

    @property
    def image(self) -> np.ndarray:
        """The final image, [height, width, 3] uint8."""
        return _last_image(self.turns)

    @property
    def corrections(self) -> int:
        """Refine turns of the step that has most of them."""
        return max(len(step.refines) for step in self.steps)


def targets_of(turns: Sequence[Turn]) -> list[int]:
    """For each turn, the index of the turn whose image is its flow target; -1 where it has none.

    A right image is its own target. The target of a wrong image is the last image of its
    step, if that one is right.
    """
    right = [turn.image_ok and turn.image is not None for turn in turns]
    targets, step_end = [], len(turns) - 1  # step_end: the last turn of the step of turn i
    for i in reversed(range(len(turns))):
        targets.append(i if right[i] else step_end if right[step_end] else -1)
        step_end = step_end if turns[i].refines else i - 1
    return targets[::-1]
