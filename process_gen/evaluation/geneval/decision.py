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
      max_overlap: of two of one class with an IoU of at least this only the better one counts; 1 is off.
      position_threshold: the share of both sizes by which centres have to be apart.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


OFFICIAL = Options()
"""The official defaults."""

Selected = dict[str, list[Detection]]
"""Class -> its detections that count, best first; no class is empty."""

ColorsOf = Callable[[str, Sequence[Detection]], Sequence[str]]
"""The colours of some detections of a class; asked only about those that a clause is judged by."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A clause and whether it holds.

    Attributes:
      text: the clause, as `red cup>=1 left of dog`.
      kind: empty where it holds, else `missing_count`, `wrong_color`, `no_target`, `wrong_position` or
        `exclude_exceeded`.
      reason: in the words of the official scorer; empty where it holds.
    """

    text: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one image: every clause of the prompt, those of `include` first."""

    checks: tuple[Check, ...]

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.kind]

    @property
    def correct(self) -> bool:
        return not self.failures

    @property
    def reason(self) -> str:
        """One line for each failure; empty where the image is correct."""
        return "\n".join(check.reason for check in self.failures)


def select(detections: Sequence[Detection], tag: str, options: Options = OFFICIAL) -> Selected:
    """Selects the detections of each class that count, best first.

    Of equal scores the last one listed comes first, as the official order is for up to 16 of a class.
    """
    least = np.float32(options.counting_threshold if tag == "counting" else options.threshold)
    found: Selected = {}
    for one in reversed(detections):
        if np.float32(one.score) > least:
            found.setdefault(one.cls, []).append(one)
    for cls, ones in found.items():
        kept: list[Detection] = []
        for one in sorted(ones, key=lambda one: -np.float32(one.score))[: options.max_objects]:
            if options.max_overlap == 1 or all(_overlap(it, one) < options.max_overlap for it in kept):
                kept.append(one)
        found[cls] = kept
    return found


def _overlap(one: Detection, other: Detection) -> np.float32:
    """Intersection over union, where both corners of a box belong to it: sides are one pixel longer."""
    a, b = np.asarray(one.box, np.float32), np.asarray(other.box, np.float32)
    both = _area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
    union = _area(a) + _area(b) - both
    return both / union if union else np.float32(0)


def _area(box: np.ndarray) -> np.float32:
    return np.maximum(box[2:] - box[:2] + np.float32(1), np.float32(0)).prod()


def judge(
    metadata: Mapping[str, Any], selected: Selected, colors_of: ColorsOf, options: Options = OFFICIAL
) -> Verdict:
    """Judges what was found in an image by a line of GenEval's metadata.

    A clause takes the first `count` detections of its class. Their colours are checked only
    if they are enough, their positions only if the colours are right.
    """
    checks: list[Check] = []
    targets: list[Sequence[Detection] | None] = []
    included, excluded = metadata.get("include", ()), metadata.get("exclude", ())
    for clause in included:
        found = selected.get(clause["class"], [])[: clause["count"]]
        failed = _check_clause(clause, found, targets, colors_of, options.position_threshold)
        checks.append(Check(_text(clause, ">=", included), *failed))
        targets.append(None if failed[0] else found)
    for clause in excluded:
        cls, count, number = clause["class"], clause["count"], len(selected.get(clause["class"], []))
        failed = (
            ("exclude_exceeded", f"expected {cls}<{count}, found {number}") if number >= count else ("", "")
        )
        checks.append(Check(_text(clause, "<", excluded), *failed))
    return Verdict(tuple(checks))


def _text(clause: Mapping[str, Any], sign: str, clauses: Sequence[Mapping[str, Any]]) -> str:
    color = f"{clause['color']} " if "color" in clause else ""
    relation, target = clause.get("position", ("", 0))
    where = f" {relation} {clauses[target]['class']}" if relation else ""
    return f"{color}{clause['class']}{sign}{clause['count']}{where}"


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
