"""Sampled trajectories in words: one line for a verdict, a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from process_gen.reports.table import table
from process_gen.trajectory.markup import Malformed, Plan
from process_gen.trajectory.sampled import SampledTrajectory

WIDEST = 60
"""Characters of the widest cell."""


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """A verdict in one line: right, or what is wrong."""
    if verdict["ok"]:
        return "right"
    return "wrong: " + "; ".join(
        one["reason"] or one["text"] for one in verdict["constraints"] if not one["ok"]
    )


def describe(trajectories: Sequence[SampledTrajectory]) -> str:
    """A table of trajectories for a terminal: steps with their plans, how each ended, and its verdict."""
    rows: list[tuple[Any, ...]] = []
    for one in trajectories:
        for i, step in enumerate(one.steps):
            head = (one.uid, _short(one.prompt or one.instruction)) if i == 0 else ("", "")
            rows.append((*head, i + 1, _plan(step.plan), "refined" if step.refines else ""))
        end = {"model": "stops", "cap": "cut at the cap"}[one.stopped]
        rows.append(("", "", "", end, _short(verdict_line(one.verdict) if one.verdict else "not judged")))
    return table(rows, ("", "prompt", "step", "plan", "outcome"))


def _plan(plan: Plan | Malformed | None) -> str:
    if isinstance(plan, Malformed):
        return _short(f"malformed: {plan.reason}")
    return "-" if plan is None else _short(plan.instruction)


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
