"""Results of one or several modes on disk, as tables and as bars.

A results file is JSON. It holds what was judged (checkpoint, config, sampler
settings, benchmark), what came out, and the outcome of every single prompt, so
that intervals, failures and paired comparisons can be made again from it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from process_gen.common import files
from process_gen.evaluation.benchmark import EXTRA_GROUPS, SCORED_GROUPS
from process_gen.evaluation.evaluator import Scores
from process_gen.evaluation.intervals import Interval, paired_difference

KIND = "process_gen evaluation"
SCHEMA = 1
_FIELDS = ("created", "checkpoint", "sampler", "benchmark", "config")

COSTS = {"steps": "steps", "sampling_steps": "sampling steps", "seconds": "seconds per image"}
"""Means that tables show, and what they are called there."""

Table = tuple[list[str], list[list[Any]]]
"""Headers and rows, an interval as it is."""


class ResultsError(ValueError):
    """A file that is not a results file of this version; the message names it."""


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that one evaluation found.

    Attributes:
      checkpoint: what was judged: `source`, `which` (ema or params) and what else is known.
      config: of the training run, as JSON; empty where there is none.
      sampler: settings of the sampler, as JSON.
      benchmark: `Benchmark.to_json()`.
      modes: name -> scores.
      created: time of day, ISO 8601.
    """

    checkpoint: Mapping[str, Any]
    config: Mapping[str, Any]
    sampler: Mapping[str, Any]
    benchmark: Mapping[str, Any]
    modes: Mapping[str, Scores]
    created: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in _FIELDS},
            "modes": {name: scores.to_json() for name, scores in self.modes.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> Results:
        """Reads what `to_json` wrote.

        Raises:
          ResultsError: it is something else.
        """
        if not isinstance(data, Mapping) or data.get("kind") != KIND:
            raise ResultsError("not a results file of process_gen.evaluate")
        if data.get("schema") != SCHEMA:
            raise ResultsError(f"results schema {data.get('schema')!r}; this version reads {SCHEMA}")
        try:
            modes = {name: Scores.from_json(name, scores) for name, scores in data["modes"].items()}
            return cls(modes=modes, **{name: data[name] for name in _FIELDS})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ResultsError(f"damaged results: {error!r}") from error

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the file, whole or not at all."""
        files.write_json(path, self.to_json(), indent=1, allow_nan=False)
        return pathlib.Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Reads a file.

        Raises:
          ResultsError: there is none, or it is something else; names the file.
        """
        try:
            return cls.from_json(files.read_json(path))
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path}: {error}") from error


def group_table(arms: Mapping[str, Scores]) -> Table:
    """One row per group: the share of right images of each arm with its interval; score and costs last."""
    headers = ["group", "n", *(f"{name} (95% interval)" for name in arms)]
    rows: list[list[Any]] = []
    for group in _groups(arms):
        count = max(len(scores.verdicts([group]).get(group, ())) for scores in arms.values())
        rows.append([group, count, *(scores.groups.get(group) for scores in arms.values())])
    if any(scores.score for scores in arms.values()):
        rows.append(["score", None, *(scores.score for scores in arms.values())])
    for key, name in COSTS.items():
        rows.append([name, None, *(f"{scores.means()[key]:.3g}" for scores in arms.values())])
    return headers, rows


def process_table(arms: Mapping[str, Scores]) -> Table:
    """What happened on the way, where there is something to tell; failures last."""
    shares = [scores.counts.shares() for scores in arms.values()]
    measures = dict.fromkeys(measure for found in shares for measure in found)
    rows: list[list[Any]] = [[measure, *(found.get(measure) for found in shares)] for measure in measures]
    for key in ("refined_images", "stopped_by_cap"):
        rows.append([key, *(f"{scores.means()[key]:.2f}" for scores in arms.values())])
    for kind in dict.fromkeys(kind for scores in arms.values() for kind in scores.failures):
        shown = (f"{scores.failures.get(kind, 0)} of {len(scores.outcomes)}" for scores in arms.values())
        rows.append([f"failed: {kind}", *shown])
    return ["measure", *arms], rows


def difference_table(arms: Mapping[str, Scores]) -> Table | None:
    """Each arm less the first, over the scored groups; None where the prompts differ or there is one arm."""
    (first, base), *others = arms.items()
    rows = []
    for name, scores in others:
        if not _scored_prompts(base) or _scored_prompts(base) != _scored_prompts(scores):
            return None
        gap = paired_difference(scores.verdicts(SCORED_GROUPS), base.verdicts(SCORED_GROUPS))
        rows.append([f"{name} - {first}", gap.mean, f"{gap.low:+.3f} to {gap.high:+.3f}"])
    return (["difference of the score", "mean", "95% interval (paired)"], rows) if rows else None


def _scored_prompts(scores: Scores) -> list[tuple[str, str]]:
    return [(one.group, one.prompt) for one in scores.outcomes if one.group in SCORED_GROUPS]


def bars(arms: Mapping[str, Scores]) -> dict[str, dict[str, Interval]]:
    """arm -> group -> (mean, low, high), the score last: what `reports.plots.bars` draws."""
    shown = {}
    for name, scores in arms.items():
        found = scores.groups
        shown[name] = {group: found[group] for group in _groups(arms) if group in found}
        if scores.score:
            shown[name]["score"] = scores.score
    return shown


def _groups(arms: Mapping[str, Scores]) -> list[str]:
    """Every group that some arm has, in the benchmark's order."""
    found = dict.fromkeys(group for scores in arms.values() for group in scores.groups)
    known = [group for group in SCORED_GROUPS + EXTRA_GROUPS if group in found]
    return known + [group for group in found if group not in known]
