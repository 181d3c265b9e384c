"""Results of one or several modes on disk, as table rows and as bars.

A results file is JSON. It holds what was judged (checkpoint, config, sampler
settings, benchmark), what came out, and the outcome of every single prompt, so
that intervals, failures and paired comparisons can be made again from it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
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
"""Headers and rows."""


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
            fields = {name: data[name] for name in _FIELDS}
            modes = {name: Scores.from_json(name, scores) for name, scores in data["modes"].items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ResultsError(f"damaged results: {error!r}") from error
        return cls(modes=modes, **fields)

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
        except (OSError, ValueError, ResultsError) as error:
            raise ResultsError(f"{path}: {error}") from error


def score_table(arms: Mapping[str, Scores]) -> Table:
    """One row per arm: groups, the mean of the scored ones with its interval, and the costs."""
    groups = _groups(arms)
    headers = ["mode", *groups, "score", "95% interval", *COSTS.values()]
    rows = []
    for name, scores in arms.items():
        found, means = scores.groups, scores.means()
        score = scores.score if scores.verdicts(SCORED_GROUPS) else None
        rows.append(
            [
                name,
                *(found[group].mean if group in found else None for group in groups),
                score and score.mean,
                score and f"{score.low:.3f}-{score.high:.3f}",
                *(means[key] for key in COSTS),
            ]
        )
    return headers, rows


def group_table(arms: Mapping[str, Scores]) -> Table:
    """One row per group: the share of right images of each arm with its interval; score and costs last."""
    groups = _groups(arms)
    headers = ["group", "n", *(f"{name} (95% interval)" for name in arms)]
    rows = []
    for group in groups:
        counts = {len(scores.verdicts()[group]) for scores in arms.values() if group in scores.groups}
        shown = [scores.groups.get(group) for scores in arms.values()]
        rows.append([group, max(counts), *(None if one is None else str(one) for one in shown)])
    if any(scores.verdicts(SCORED_GROUPS) for scores in arms.values()):
        means = [str(scores.score) if scores.verdicts(SCORED_GROUPS) else None for scores in arms.values()]
        rows.append(["score", None, *means])
    for key, name in COSTS.items():
        rows.append([name, None, *(f"{scores.means()[key]:.3g}" for scores in arms.values())])
    return headers, rows


def process_table(arms: Mapping[str, Scores]) -> Table:
    """What happened on the way, where there is something to tell; failures last."""
    shares = {name: scores.counts.shares() for name, scores in arms.items()}
    measures = list(dict.fromkeys(measure for found in shares.values() for measure in found))
    rows: list[list[Any]] = [
        [measure, *(str(found[measure]) if measure in found else None for found in shares.values())]
        for measure in measures
    ]
    for key in ("refined_images", "stopped_by_cap"):
        rows.append([key, *(f"{scores.means()[key]:.2f}" for scores in arms.values())])
    kinds = list(dict.fromkeys(kind for scores in arms.values() for kind in scores.failures))
    for kind in kinds:
        shown = (f"{scores.failures.get(kind, 0)} of {len(scores.outcomes)}" for scores in arms.values())
        rows.append([f"failed: {kind}", *shown])
    return ["measure", *arms], rows


def difference_table(arms: Mapping[str, Scores]) -> Table | None:
    """Each arm less the first, over the scored groups; None where the prompts differ."""
    (first, base), *others = arms.items()
    rows = []
    for name, scores in others:
        if not same_tasks(base, scores):
            return None
        gap = paired_difference(scores.verdicts(SCORED_GROUPS), base.verdicts(SCORED_GROUPS))
        rows.append([f"{name} - {first}", gap.mean, f"{gap.low:+.3f} to {gap.high:+.3f}"])
    return (["difference of the score", "mean", "95% interval (paired)"], rows) if rows else None


def same_tasks(one: Scores, other: Scores) -> bool:
    """Whether two arms answered the same prompts of the scored groups, in the same order."""
    tasks = [[(o.group, o.prompt) for o in arm.outcomes if o.group in SCORED_GROUPS] for arm in (one, other)]
    return bool(tasks[0]) and tasks[0] == tasks[1]


def bars(arms: Mapping[str, Scores]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """arm -> group -> (mean, low, high), the score last: what `reports.plots.bars` draws."""
    shown = {}
    for name, scores in arms.items():
        row = {group: scores.groups[group] for group in _groups(arms) if group in scores.groups}
        if scores.verdicts(SCORED_GROUPS):
            row["score"] = scores.score
        shown[name] = {group: _triple(interval) for group, interval in row.items()}
    return shown


def arms_of(files: Sequence[tuple[str, Results]]) -> dict[str, Scores]:
    """The arms of several results, named so that they can be told apart.

    Args:
      files: (label, results); a label is shown where modes repeat.
    """
    names = [mode for _, results in files for mode in results.modes]
    unique = len(set(names)) == len(names)
    arms: dict[str, Scores] = {}
    for label, results in files:
        for mode, scores in results.modes.items():
            name = mode if unique else f"{label}: {mode}"
            if name in arms:
                raise ResultsError(f"two results are both called {name!r}")
            arms[name] = scores
    return arms


def _groups(arms: Mapping[str, Scores]) -> list[str]:
    """Every group that some arm has, in the benchmark's order."""
    found = dict.fromkeys(group for scores in arms.values() for group in scores.groups)
    known = [group for group in SCORED_GROUPS + EXTRA_GROUPS if group in found]
    return known + [group for group in found if group not in known]


def _triple(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high
