"""Counts of errors in the steps of trajectories, which can be added; `process` defines each of them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from process_gen.evaluation.reading import KINDS
from process_gen.evaluation.statistics import Shares


@dataclasses.dataclass
class Counts:
    """Sums over trajectories; add two with `+`."""

    steps: int = 0
    plans: int = 0  # plan texts
    malformed_plans: int = 0  # those that do not parse as a plan
    unread: int = 0  # plans whose description is outside the grammar
    drafts: int = 0  # of steps with a readable description
    wrong_drafts: int = 0
    # Drafts, by whether they are wrong and flagged.
    caught: int = 0
    missed: int = 0
    false_alarms: int = 0
    passed: int = 0
    # Corrections, by what they did to the draft.
    fixed: int = 0
    still_wrong: int = 0
    kept_right: int = 0
    spoiled: int = 0
    # The same by the judge's verdict, at last steps.
    final_fixed: int = 0
    final_still_wrong: int = 0
    final_kept_right: int = 0
    final_spoiled: int = 0
    to_keep: int = 0  # objects of the state before that the next description still has
    kept: int = 0
    to_repair: int = 0  # steps after a wrong state
    repaired: int = 0
    # Readable plans after a corrected step or after another, and the wrong ones.
    plans_after_refine: int = 0
    wrong_after_refine: int = 0
    plans_otherwise: int = 0
    wrong_otherwise: int = 0
    final_plans: int = 0  # last descriptions that can be read
    final_plans_right: int = 0  # those that satisfy the prompt
    # By kind of error (`reading.KINDS`, and `plan`): drafts that show one, objections that name one, those of
    # them that are right, and objections to right drafts that name one.
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    claims: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    named: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    alarms: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    # Of states before the last: objects that they show, and those that the final image shows as well.
    shown: int = 0
    lasting: int = 0
    # By step index: states that steps with a readable description leave, and the right ones.
    states_at: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    right_at: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    # Objects that they should show, and those that they lack.
    planned_at: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    lacking_at: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    # States that follow a right state or none, and the wrong ones among them.
    sound_at: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    broken_at: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def shares(self) -> dict[str, tuple[float, float]]:
        """Every share as (numerator, denominator), without those over 0 (`statistics.Shares`)."""
        right = self.drafts - self.wrong_drafts
        pairs = {
            "malformed_plans": (self.malformed_plans, self.plans),
            "unread_descriptions": (self.unread, self.plans - self.malformed_plans),
            "final_plan_right": (self.final_plans_right, self.final_plans),
            "wrong_drafts": (self.wrong_drafts, self.drafts),
            "inspect_precision": (self.caught, self.caught + self.false_alarms),
            "inspect_recall": (self.caught, self.caught + self.missed),
            "inspect_f1": (2 * self.caught, 2 * self.caught + self.false_alarms + self.missed),
            "over_corrected": (self.false_alarms, right),
            "over_correction_harm": (self.spoiled, right),
            "refine_fixes": (self.fixed, self.fixed + self.still_wrong),
            "refine_spoils": (self.spoiled, self.spoiled + self.kept_right),
            "final_refine_fixes": (self.final_fixed, self.final_fixed + self.final_still_wrong),
            "final_refine_spoils": (self.final_spoiled, self.final_spoiled + self.final_kept_right),
            "objects_kept": (self.kept, self.to_keep),
            "objects_in_final": (self.lasting, self.shown),
            "repaired_next": (self.repaired, self.to_repair),
            "next_plan_wrong_after_refine": (self.wrong_after_refine, self.plans_after_refine),
            "next_plan_wrong_otherwise": (self.wrong_otherwise, self.plans_otherwise),
        }
        for kind in sorted({*self.errors, *self.claims}):
            errors, claims, named = self.errors[kind], self.claims[kind], self.named[kind]
            pairs[f"inspect_precision_{kind}"] = (named, claims)
            pairs[f"inspect_recall_{kind}"] = (named, errors)
            pairs[f"inspect_f1_{kind}"] = (2 * named, errors + claims)
        pairs |= {f"false_alarms_{kind}": (self.alarms[kind], right) for kind in (*KINDS, "other")}
        for name, part, whole in (
            ("right", self.right_at, self.states_at),
            ("new_errors", self.broken_at, self.sound_at),
            ("objects_lacking", self.lacking_at, self.planned_at),
        ):
            pairs |= {f"{name}_at_step_{i + 1}": (part[i], n) for i, n in sorted(whole.items())}
        return {name: pair for name, pair in pairs.items() if pair[1]}

    def to_json(self) -> dict[str, Any]:
        """Its sums, without those that are 0."""
        return {name: value for name, value in vars(self).items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Counts:
        """Reads what `to_json` wrote; step indices, which are strings in JSON, become numbers again."""
        counters = {
            name: collections.Counter({int(k) if name.endswith("_at") else k: n for k, n in value.items()})
            for name, value in data.items()
            if isinstance(value, Mapping)
        }
        return cls(**{**data, **counters})


def add_to(sums: dict[str, Counts | Shares], doc_id: str, more: Counts | Shares) -> None:
    """Adds counts or shares to those of a prompt."""
    there = sums.get(doc_id)
    if there is None:
        sums[doc_id] = more
    elif isinstance(more, Counts):
        sums[doc_id] = there + more
    else:
        pairs = {name: (there.get(name, (0, 0)), more.get(name, (0, 0))) for name in {**there, **more}}
        sums[doc_id] = {name: (a + b, of_a + of_b) for name, ((a, of_a), (b, of_b)) in pairs.items()}
