"""The decisions of a trajectory: what may follow a prompt, an image or an inspection.

    after a prompt         `<ins>` a plan | `<|vision_start|>` an image
    after an image         `<|im_start|>` an inspection | what follows a turn
    after an inspection    what follows a turn

    what follows a turn: `<refine>` | `<ins>` | `<|vision_start|>` | the end

(see `trajectory.controls`). The mode, the slots of the layout and the number of
corrections so far remove choices; with one left there is nothing to decide.
"""

from __future__ import annotations

import enum

from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Mode


class Opens(enum.IntEnum):
    """What a closing token opens; the value is its place among the choices of `turn.decide`."""

    INSPECT = 0
    REFINE = 1
    PLAN = 2
    IMAGE = 3
    END = 4


NOTHING = -1
"""In place of a decision, in rows that take none."""


def choice_ids(ids: ControlIds) -> tuple[int, ...]:
    """The tokens that stand for the choices, in the order of `Opens`."""
    return (ids.im_start, ids.refine, ids.ins, ids.vision_start, ids.end_of_text)


def choices(
    stream: str, mode: Mode, layout: Layout, corrections: int = 0, inspections: bool = True
) -> frozenset[Opens]:
    """What may follow a prompt, an image, or the text after an image.

    Args:
      stream: `after_prompt`, `after_image` or `after_text`.
      corrections: refine turns of the current step so far.
      inspections: whether images are inspected, and corrected.
    """
    if stream == "after_prompt":
        if mode == Mode.PLAN_ONLY:
            return frozenset({Opens.PLAN})
        plans = mode == Mode.PROCESS and layout.before
        return frozenset({Opens.PLAN, Opens.IMAGE} if plans else {Opens.IMAGE})
    if mode != Mode.PROCESS:
        return frozenset({Opens.END})
    found = {Opens.IMAGE, Opens.END}
    if layout.before:
        found.add(Opens.PLAN)
        if inspections and corrections < layout.corrections:
            found.add(Opens.REFINE)
    if stream == "after_image" and layout.after and inspections:
        found.add(Opens.INSPECT)
    return frozenset(found)
