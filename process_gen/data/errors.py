"""What may be wrong with a trajectory."""

from __future__ import annotations

_SLOT_TEXTS = {
    "prompt": "prompt",
    "instruction": "text after the prompt's image",
    "before": "text before an image (a plan or a refine instruction)",
    "after": "inspection",
}


class BadTrajectory(ValueError):
    """A trajectory that cannot be used; `encode_trajectory` sets `uid` to its name."""

    uid: str = ""


class SlotOverflow(BadTrajectory):
    """A text has `needed` tokens, but its `slot` of the layout has room for `fits`, brackets not counted."""

    def __init__(self, slot: str, needed: int, fits: int):
        self.slot, self.needed, self.fits = slot, needed, fits
        super().__init__(
            f"the {_SLOT_TEXTS[slot]} has {needed} tokens, {fits} fit "
            f"(layout.{slot} = {fits + 2}, two of which are brackets)"
        )


class TooLong(BadTrajectory):
    """A trajectory has more `turns` than a row has turn `slots`."""

    def __init__(self, turns: int, slots: int):
        self.turns, self.slots = turns, slots
        super().__init__(f"{turns} turns, a row has {slots} turn slots (layout.turns)")
