"""What may be wrong with a trajectory, and how many may be bad."""

from __future__ import annotations

_SLOT_TEXTS = {
    "prompt": "prompt",
    "instruction": "text after the prompt's image",
    "before": "text before an image (a plan or a refine instruction)",
    "after": "inspection",
}


class BadTrajectory(ValueError):
    """A trajectory that cannot be used."""


class SlotOverflow(BadTrajectory):
    """A `text` has `needed` tokens, and its `slot` of the layout room for `fits`, brackets not counted."""

    def __init__(self, slot: str, needed: int, fits: int, text: str):
        super().__init__(
            f"the {_SLOT_TEXTS[slot]} has {needed} tokens, {fits} fit "
            f"(layout.{slot} = {fits + 2}, two of which are brackets): {text[:60]!r}"
        )


class TooLong(BadTrajectory):
    """A trajectory has more `turns` than a row has turn `slots`."""

    def __init__(self, turns: int, slots: int):
        self.turns, self.slots = turns, slots
        super().__init__(f"{turns} turns, a row has {slots} turn slots (layout.turns)")


class TooManyBadTrajectories(RuntimeError):
    """More trajectories are bad than the budget allows, or none fits a row."""


def allowance(trajectories: int) -> float:
    """Returns the default budget as a share: 0.1%; of a small data set ten trajectories, at most half."""
    return max(0.001, min(10 / max(trajectories, 1), 0.5))


def check_budget(
    bad: int, count: int, budget: float | None, last: object, what: str = "trajectories", flag: str = ""
) -> None:
    """Raises TooManyBadTrajectories where a larger share than `budget`, by default `allowance`, is bad.

    The message ends with the `last` one; `what` is counted, and `flag` sets the budget.
    """
    budget = allowance(count) if budget is None else budget
    if bad > budget * count:
        raise TooManyBadTrajectories(
            f"{bad} of {count} {what} are bad, {budget:.2%} may be{flag}; the last one: {last}"
        )


def budget_of_part(part: int, trajectories: int) -> float:
    """Returns the budget of a bucket as a share: as many as the whole data set may lose, at most 90%."""
    return min(allowance(trajectories) * trajectories / max(part, 1), 0.9)
