"""What may be wrong with a trajectory."""

from __future__ import annotations

_SLOT_TEXTS = {
    "prompt": "prompt",
    "instruction": "text after the prompt's image",
    "before": "text before an image (a plan or a refine instruction)",
    "after": "inspection",
}


class BadTrajectory(ValueError):
    """A trajectory that cannot be used; `uid` is its name where `encode_trajectory` refused it."""

    uid: str = ""


class SlotOverflow(BadTrajectory):
    """A text of `needed` tokens, longer than the `fits` that its `slot` of the layout has room for."""

    def __init__(self, slot: str, needed: int, fits: int):
        self.slot, self.needed, self.fits = slot, needed, fits
        super().__init__(
            f"the {_SLOT_TEXTS[slot]} has {needed} tokens, {fits} fit "
            f"(layout.{slot} = {fits + 2}, two of which are brackets)"
        )


class TooLong(BadTrajectory):
    """A trajectory of more `turns` than the `slots` of a row."""

    def __init__(self, turns: int, slots: int):
        self.turns, self.slots = turns, slots
        super().__init__(f"{turns} turns, a row has {slots} turn slots (layout.turns)")
