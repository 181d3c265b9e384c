"""The third stage of an evaluation: the scores of a cell from the verdicts on its images."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from process_gen.evaluation import forced, judging
from process_gen.evaluation.arms import chosen
from process_gen.evaluation.counts import Counts, add_to, counts_from_json
from process_gen.evaluation.pipeline import CellSpec, has_teacher, layout_of, listing_of
from process_gen.evaluation.results import Cell, Outcome
from process_gen.evaluation.statistics import Shares
from process_gen.evaluation.tasks.base import Judge, Judgement, Row
from process_gen.reports.listing import NAME

_OF_ALL = ("sampling_steps", "seconds")
"""Costs that are summed over all candidates for an image, those not chosen among them."""


def score_cell(folder: pathlib.Path, one: CellSpec, judge: Judge) -> tuple[Cell | None, list[pathlib.Path]]:
    """Scores a cell and writes the result files of the official scorer, if any; returns both.

    The cell is None if nothing is judged yet.
    """
    task, arm = one.benchmark, one.way
    finals, scores, unjudged = _verdicts(folder, one, judge)
    outcomes, rows, counts, seen = [], [], {}, {}
    all_seen = True  # every image of every chosen trajectory has a verdict
    indices = sorted({index for _, _, index in finals})  # of images made elsewhere, not always the first ones
    for seed, doc, index in itertools.product(one.seeds, one.docs, indices):
        candidates = [row for _, row in sorted(finals.get((doc.doc_id, seed, index), {}).items())]
        if not candidates:
            continue
        row = candidates[chosen(arm, [(c["score"], c.get("facts", {})) for c in candidates]) if arm else 0]
        if facts := row.get("facts", {}):
            facts = facts | {name: sum(c["facts"][name] for c in candidates) for name in _OF_ALL}
        asked = doc.doc_id, doc.doc_hash, doc.group, doc.input, seed, index
        outcomes.append(Outcome(*asked, row["uid"], row["score"], tuple(row["failures"]), facts))
        fields = {f.name: row[f.name] for f in dataclasses.fields(Judgement) if f.name in row}
        rows.append(Row(doc, seed, index, Judgement(**fields, raw=row.get("resps"))))
        if "process" in row:
            add_to(counts, doc.doc_id, counts_from_json(row["process"]))
        states = [(step, role, score) for (step, role), score in sorted(scores[row["uid"]].items())]
        if states[0][0] > 0 and len(states) == row["facts"]["images"]:
            add_to(seen, doc.doc_id, shares_of_states(states, row["facts"]["stopped"]))
        else:
            all_seen = False
    if not outcomes:
        return None, []
    there = {outcome.group for outcome in outcomes}
    formulas = task.formulas([group for group in dict.fromkeys(d.group for d in one.docs) if group in there])
    if task.whole and (drawn := len({outcome.doc_id for outcome in outcomes})) < (of := len(task.docs())):
        formulas = {f"{name} ({drawn:,} of {of:,} prompts)": weights for name, weights in formulas.items()}
    prompts = sorted((doc.doc_id, doc.doc_hash) for doc in one.docs)
    cell = Cell(
        task=task.name,
        version=task.version,
        arm=one.arm or "images",
        checkpoint=one.checkpoint,
        settings=one.settings,
        judge={"name": judge.name, "revision": judge.revision, "protocol": judge.protocol},
        seeds=list(one.seeds),
        outcomes=tuple(outcomes),
        prompts=hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16],
        formulas=formulas,
        wanted=len(one.docs) * len(one.seeds) * task.images * (arm.candidates if arm else 1),
        judged=sum(map(len, finals.values())),
        unjudged=unjudged,
        counts=counts,
        seen={d: {m: p for m, p in shares.items() if p[1]} for d, shares in seen.items() if all_seen},
        forced=_forced(folder, one),
        summary=dict(task.summary(rows)),
    )
    return cell, list(task.write_results(rows, layout_of(folder, one)))


def _verdicts(
    folder: pathlib.Path, one: CellSpec, judge: Judge
) -> tuple[Mapping[tuple[str, int, int], dict[int, Any]], Mapping[str, dict[tuple[int, str], float]], int]:
    """The verdicts on the images of a cell; those on other trajectories or prompts are left out.

    Returns:
      Prompt, seed and image -> candidate -> line of the final image; trajectory -> step and role -> score of
      every image; how many final images the judge had no verdict on.
    """
    if one.way:
        uids = {draw.uid for draw in one.wanted}
    else:  # the images that are there now
        images = judging.foreign_states(one.benchmark, pathlib.Path(one.images), one.docs)
        uids = {state.key[0] for state in images}
    hashes = {doc.doc_id: doc.doc_hash for doc in one.docs}
    finals, scores = collections.defaultdict(dict), collections.defaultdict(dict)
    failed = set()
    for row in judging.read_verdicts(judging.verdicts_path(folder / one.place, judge)):
        if row["uid"] not in uids or hashes.get(row["doc_id"]) != row["doc_hash"]:
            continue
        if "error" in row:
            failed |= {row["uid"]} if row["final"] else set()
            continue
        scores[row["uid"]][row["step"], row["role"]] = row["score"]
        if row["final"]:
            index, candidate = divmod(row["index"], one.way.candidates if one.way else 1)
            finals[row["doc_id"], row["seed"], index][candidate] = row
    right = {row["uid"] for found in finals.values() for row in found.values()}
    return finals, scores, len(failed - right)


def _forced(folder: pathlib.Path, one: CellSpec) -> Mapping[str, Counts]:
    """`doc_id` -> counts of teacher-forced steps; empty where none are drawn."""
    if not has_teacher(one) or not (folder / one.place / forced.FOLDER / NAME).exists():
        return {}
    listing = listing_of(folder, one, below=forced.FOLDER)
    return forced.counts_of(listing, one.wanted, one.benchmark.requests)


def shares_of_states(states: Sequence[tuple[int, str, float]], stopped: str | None) -> Shares:
    """Measures of the steps of one trajectory, from a judge's score of every image; they work for any judge.

    With v(k) the score of the last image of step k and n the number of steps:

        score_at_step_k     mean of v(k) over the trajectories that have a step k
        refined_better      share of corrections whose image scores higher than the image that they correct
        refined_worse       share of corrections whose image scores lower
        never_worse         share of steps after the first with v(k) >= v(k - 1)
        stopped_wrong       of trajectories that the model ended, the share with v(n) < 1
        stopped_too_late    share of trajectories with v(k) = 1 for a k < n: it went on from a right image
        late_and_lost       of those, the share with v(n) < 1
        stopped_by_cap      share of trajectories that the limit on turns or Euler steps ended

    The judge scores each image by the whole prompt, so a low score of an unfinished image is no error. Only
    differences between images that follow each other, and the last scores, tell something of the model.
    Errors in plans do not show here: `process` counts them in worlds where a parser reads every image.

    Args:
      states: step (from 1), role and score from 0 to 1 of every image of the trajectory, in order.
      stopped: who ended it, `model` or `cap`.

    Returns:
      The numerator and denominator that the trajectory adds to each measure.
    """
    pairs = list(itertools.pairwise(states))
    corrected = [(before, score) for (step, _, before), (after, _, score) in pairs if step == after]
    left = {step: score for step, _, score in states}
    values = list(left.values())
    wrong, late = values[-1] < 1, any(value >= 1 for value in values[:-1])
    by_model = stopped == "model"
    return {
        "refined_better": (sum(score > before for before, score in corrected), len(corrected)),
        "refined_worse": (sum(score < before for before, score in corrected), len(corrected)),
        "never_worse": (sum(b >= a for a, b in itertools.pairwise(values)), len(values) - 1),
        "stopped_wrong": (by_model and wrong, by_model),
        "stopped_too_late": (late, 1),
        "late_and_lost": (late and wrong, late),
        "stopped_by_cap": (stopped == "cap", 1),
        **{f"score_at_step_{step}": (score, 1) for step, score in left.items()},
    }
