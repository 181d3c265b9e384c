"""Computes GenEval's verdict from detections, exactly as the official scorer does.

Pure functions: they need no image and no model. Scores and boxes are compared in float32,
since a score of float32(0.3) passes a threshold of 0.3 in float64 and fails it in float32.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.scenes.graph import OPPOSITE, relations_between

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""In the order in which reasons list them."""

RELATIONS = tuple(OPPOSITE)
"""Left of, right of, above, below; the order in which reasons list them."""

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """One thing that was found in an image.

    Attributes:
      cls: its class.
      score: from 0 to 1.
      box: (x0, y0, x1, y1) in pixels, y down, the last two exclusive.
      mask: its pixels, [H, W] bool, of detectors that have masks.
      color: its colour, from sources that know it.
    """

    cls: str
    score: float
    box: Box
    mask: np.ndarray | None = None
    color: str | None = None

    def to_json(self) -> list[float]:
        """Box and score in float32, as the official results have them."""
        return [float(np.float32(value)) for value in (*self.box, self.score)]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the official scorer that change a verdict.

    Attributes:
      threshold: a detection counts with a score above this one.
      counting_threshold: the same for prompts of tag `counting`.
      max_objects: the most detections of one class that count.
      position_threshold: the share of both sizes by which centres have to be apart.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    position_threshold: float = 0.1


OFFICIAL = Options()
"""The official defaults."""

Selected = dict[str, list[Detection]]
"""Class -> its detections that count, best first; no class is empty."""

ColorsOf = Callable[[str, Sequence[Detection]], Sequence[str]]
"""The colours of some detections of a class; asked only about those that a clause is judged by."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A clause that does not hold.

    Attributes:
      kind: `missing_count`, `wrong_color`, `no_target`, `wrong_position` or `exclude_exceeded`.
      clause: its index in `exclude` for the last of these kinds, else in `include`.
      reason: in the words of the official scorer.
    """

    kind: str
    clause: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one image: its failures, in the order in which they were found."""

    failures: tuple[Failure, ...]

    @property
    def correct(self) -> bool:
        return not self.failures

    @property
    def reason(self) -> str:
        """One line for each failure; empty where the image is correct."""
        return "\n".join(failure.reason for failure in self.failures)


def select(detections: Sequence[Detection], tag: str, options: Options = OFFICIAL) -> Selected:
    """Selects the detections of each class that count, best first.

    Of equal scores the last one listed comes first, as the official order is for up to 16 of a class.
    """
    least = np.float32(options.counting_threshold if tag == "counting" else options.threshold)
    found: Selected = {}
    for one in reversed(detections):
        if np.float32(one.score) > least:
            found.setdefault(one.cls, []).append(one)
    return {
        cls: sorted(ones, key=lambda one: -np.float32(one.score))[: options.max_objects]
        for cls, ones in found.items()
    }


def judge(
    metadata: Mapping[str, Any], selected: Selected, colors_of: ColorsOf, options: Options = OFFICIAL
) -> Verdict:
    """Judges what was found in an image by a line of GenEval's metadata.

    A clause takes the first `count` detections of its class. Their colours are checked only
    if they are enough, their positions only if the colours are right.
    """
    failures: list[Failure] = []
    targets: list[Sequence[Detection] | None] = []
    for index, clause in enumerate(metadata.get("include", ())):
        found = selected.get(clause["class"], [])[: clause["count"]]
        kind, reason = _check_clause(clause, found, targets, colors_of, options.position_threshold)
        if kind:
            failures.append(Failure(kind, index, reason))
        targets.append(None if kind else found)
    for index, clause in enumerate(metadata.get("exclude", ())):
        cls, count, number = clause["class"], clause["count"], len(selected.get(clause["class"], []))
        if number >= count:
            failures.append(Failure("exclude_exceeded", index, f"expected {cls}<{count}, found {number}"))
    return Verdict(tuple(failures))


def _check_clause(
    clause: Mapping[str, Any],
    found: Sequence[Detection],
    targets: Sequence[Sequence[Detection] | None],
    colors_of: ColorsOf,
    apart: float,
) -> tuple[str, str]:
    """Kind and reason of the first thing that is wrong with a clause of `include`; empty if nothing is."""
    cls, count = clause["class"], clause["count"]
    if len(found) < count:
        return "missing_count", f"expected {cls}>={count}, found {len(found)}"
    if "color" in clause:
        color, seen = clause["color"], list(colors_of(cls, found))
        right = seen.count(color)
        if right < count:
            shown = ", ".join(f"{seen.count(one)} {one}" for one in COLORS if one in seen)
            return "wrong_color", f"expected {color} {cls}>={count}, found {right} {color}; and {shown}"
    if "position" in clause:
        relation, index = clause["position"]
        target = targets[index]
        if target is None:
            return "no_target", f"no target for {cls} to be {relation}"
        for one, other in itertools.product(found, target):
            holding = relations_between(one.box, other.box, apart)
            if relation not in holding:
                said = f"expected {cls} {relation} target, found {' and '.join(holding)} target"
                return "wrong_position", said
    return "", ""


def constraints(metadata: Mapping[str, Any], verdict: Verdict) -> list[dict[str, Any]]:
    """Every clause with `text`, `ok` and `reason`, those of `include` first."""
    reasons = {
        (failure.kind == "exclude_exceeded", failure.clause): failure.reason for failure in verdict.failures
    }
    found = []
    for excluded, key, sign in ((False, "include", ">="), (True, "exclude", "<")):
        for index, clause in enumerate(metadata.get(key, ())):
            text = f"{clause['color']} {clause['class']}" if "color" in clause else clause["class"]
            text = f"{text}{sign}{clause['count']}"
            if "position" in clause:
                relation, target = clause["position"]
                text = f"{text} {relation} {metadata[key][target]['class']}"
            reason = reasons.get((excluded, index), "")
            found.append({"text": text, "ok": not reason, "reason": reason})
    return found
