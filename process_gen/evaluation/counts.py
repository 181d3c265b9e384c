"""Counts of errors in the steps of trajectories; `process` defines each of them.

    steps
    plans, malformed_plans              plan texts; those that do not parse as a plan
    unread                              plans whose description is outside the grammar
    drafts, wrong_drafts                of steps with a readable description
    caught, missed                      wrong drafts: flagged, or not
    false_alarms, passed                right drafts: flagged, or not
    fixed, still_wrong                  corrections of wrong drafts, by what they leave
    kept_right, spoiled                 corrections of right drafts, by what they leave
    final_fixed, ...                    the same four by the judge's verdict, at last steps
    to_keep, kept                       objects of the state before that the next description still has
    to_repair, repaired                 steps after a wrong state
    plans_after_refine, plans_otherwise readable plans after a corrected step, or after another
    wrong_after_refine, wrong_otherwise those of them that are wrong
    final_plans, final_plans_right      last descriptions that can be read; those that satisfy the prompt
    shown, lasting                      objects of states before the last; those that the final image shows

By kind of error (`reading.KINDS`, `plan` and `other`), the key being name and kind:

    errors, claims                      drafts that show one; objections that name one
    named, alarms                       objections that name one: that are right, and to right drafts

By step index, the key being name and index:

    states_at, right_at                 states that steps with a readable description leave; the right ones
    planned_at, lacking_at              objects that they should show; those that they lack
    sound_at, broken_at                 states that follow a right state or none; the wrong ones
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from process_gen.evaluation.reading import KINDS
from process_gen.evaluation.statistics import Shares

Counts = collections.Counter
"""Sums over trajectories; add two with `+`."""


def shares_of_counts(counts: Counts) -> dict[str, tuple[float, float]]:
    """Every share as (numerator, denominator), without those over 0 (`statistics.Shares`)."""
    right = counts["drafts"] - counts["wrong_drafts"]
    pairs = {
        "malformed_plans": (counts["malformed_plans"], counts["plans"]),
        "unread_descriptions": (counts["unread"], counts["plans"] - counts["malformed_plans"]),
        "final_plan_right": (counts["final_plans_right"], counts["final_plans"]),
        "wrong_drafts": (counts["wrong_drafts"], counts["drafts"]),
        "inspect_precision": (counts["caught"], counts["caught"] + counts["false_alarms"]),
        "inspect_recall": (counts["caught"], counts["caught"] + counts["missed"]),
        "inspect_f1": (
            2 * counts["caught"],
            2 * counts["caught"] + counts["false_alarms"] + counts["missed"],
        ),
        "over_corrected": (counts["false_alarms"], right),
        "over_correction_harm": (counts["spoiled"], right),
        "refine_fixes": (counts["fixed"], counts["fixed"] + counts["still_wrong"]),
        "refine_spoils": (counts["spoiled"], counts["spoiled"] + counts["kept_right"]),
        "final_refine_fixes": (counts["final_fixed"], counts["final_fixed"] + counts["final_still_wrong"]),
        "final_refine_spoils": (
            counts["final_spoiled"],
            counts["final_spoiled"] + counts["final_kept_right"],
        ),
        "objects_kept": (counts["kept"], counts["to_keep"]),
        "objects_in_final": (counts["lasting"], counts["shown"]),
        "repaired_next": (counts["repaired"], counts["to_repair"]),
        "next_plan_wrong_after_refine": (counts["wrong_after_refine"], counts["plans_after_refine"]),
        "next_plan_wrong_otherwise": (counts["wrong_otherwise"], counts["plans_otherwise"]),
    }
    by = sorted((key, number) for key, number in counts.items() if isinstance(key, tuple))
    for kind in sorted({kind for (name, kind), _ in by if name in ("errors", "claims")}):
        errors, claims, named = (counts[name, kind] for name in ("errors", "claims", "named"))
        pairs[f"inspect_precision_{kind}"] = (named, claims)
        pairs[f"inspect_recall_{kind}"] = (named, errors)
        pairs[f"inspect_f1_{kind}"] = (2 * named, errors + claims)
    pairs |= {f"false_alarms_{kind}": (counts["alarms", kind], right) for kind in (*KINDS, "other")}
    for measure, part, whole in (
        ("right", "right_at", "states_at"),
        ("new_errors", "broken_at", "sound_at"),
        ("objects_lacking", "lacking_at", "planned_at"),
    ):
        pairs |= {f"{measure}_at_step_{i + 1}": (counts[part, i], n) for (name, i), n in by if name == whole}
    return {name: pair for name, pair in pairs.items() if pair[1]}


def counts_to_json(counts: Counts) -> dict[str, Any]:
    """Counts as JSON: those by kind or step index in an object of their name; without others that are 0."""
    found: dict[str, Any] = {}
    for key, number in counts.items():
        if isinstance(key, tuple):
            found.setdefault(key[0], {})[key[1]] = number
        elif number:
            found[key] = number
    return found


def counts_from_json(data: Mapping[str, Any]) -> Counts:
    """Reads what `counts_to_json` wrote; step indices, which are strings in JSON, become numbers again."""
    counts = Counts()
    for name, value in data.items():
        if isinstance(value, Mapping):
            counts.update({(name, int(k) if name.endswith("_at") else k): n for k, n in value.items()})
        else:
            counts[name] = value
    return counts


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
