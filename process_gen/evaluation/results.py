"""Results of an evaluation, in memory and on disk.

A results file is JSON. It holds cells: a task, an arm, a checkpoint, the settings of the sampler and a judge,
with the outcome of every single image, so that intervals and paired comparisons can be made again from it.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from process_gen.common import files
from process_gen.evaluation import forced
from process_gen.evaluation.counts import Counts, counts_from_json, counts_to_json, shares_of_counts
from process_gen.evaluation.statistics import Interval, Shares, mean_interval, score_interval, shares_of

KIND = "process_gen evaluation"
SCHEMA = 3

FACTS = ("steps", "images", "corrections", "sampling_steps", "seconds")
"""What a trajectory took (`judging.facts`); unknown of images that another program made."""


COUNTED = ("counts", "forced")
"""Fields of a cell that map `doc_id` to `Counts`."""


class ResultsError(ValueError):
    """A file that is not a results file of this version; the message names it."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One scored image; of several candidates the one that the arm chose.

    Attributes:
      doc_id, doc_hash, group, input: the prompt.
      seed, index: one of the evaluation's `--seeds`, and which image of this prompt and seed.
      uid: names the trajectory, or the file.
      score: of the final image, from 0 to 1.
      failures: kinds of the judge's list.
      facts: `FACTS` and `stopped`; Euler steps and seconds are sums over all candidates. Empty where unknown.
    """

    doc_id: str
    doc_hash: str
    group: str
    input: str
    seed: int
    index: int
    uid: str
    score: float
    failures: Sequence[str] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.score >= 1.0


@dataclasses.dataclass(frozen=True)
class Cell:
    """The outcomes of one arm on one task, and everything that follows from them.

    Attributes:
      task, version: the benchmark.
      arm: the way to draw; `images` of those that another program made.
      checkpoint: what was judged: `source`, `which`, `digest` and what else is known.
      settings: of the sampler, as JSON.
      judge: `name`, `revision` and `protocol`.
      seeds: the evaluation's `--seeds`.
      outcomes: in the order of the task, seed by seed.
      prompts: hash of the prompts that were asked for.
      formulas: name -> group -> weight; the first one is the score.
      wanted: final images that should have a verdict, candidates among them.
      judged: those that have one.
      unjudged: those that the judge gave no verdict on when it was asked.
      counts: `doc_id` -> exact counts over its trajectories (`process`); empty unless the task is `traced`.
      seen: `doc_id` -> shares by all scores (`scoring.shares_of_states`); empty unless all are judged.
      forced: `doc_id` -> counts of teacher-forced steps (`forced`); empty where there are none.
      summary: figures of the official scorer, if any.
    """

    task: str
    version: str
    arm: str
    checkpoint: Mapping[str, Any]
    settings: Mapping[str, Any]
    judge: Mapping[str, str]
    seeds: Sequence[int]
    outcomes: Sequence[Outcome]
    prompts: str
    formulas: Mapping[str, Mapping[str, float]]
    wanted: int
    judged: int
    unjudged: int = 0
    counts: Mapping[str, Counts] = dataclasses.field(default_factory=dict)
    seen: Mapping[str, Shares] = dataclasses.field(default_factory=dict)
    forced: Mapping[str, Counts] = dataclasses.field(default_factory=dict)
    summary: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def counted(self) -> Counts:
        """`counts` summed over all prompts."""
        return sum(self.counts.values(), Counts())

    @property
    def process(self) -> dict[str, Interval]:
        """The measures of `process` and `forced` with intervals; empty unless the task is `traced`."""
        found = shares_of(map(shares_of_counts, self.counts.values()))
        ordered = {name: found[name] for name in shares_of_counts(self.counted)}
        return ordered | forced.measures(self.forced, self.counts)

    @property
    def states(self) -> dict[str, Interval]:
        """The measures of `scoring.shares_of_states`; empty unless every image is judged."""
        return shares_of(self.seen.values())

    @property
    def missing(self) -> int:
        """Images that have no verdict and none was asked for: not drawn yet, or not judged yet."""
        return self.wanted - self.unjudged - self.judged

    def of_group(self, group: str) -> list[Outcome]:
        return [one for one in self.outcomes if one.group == group]

    @property
    def groups(self) -> dict[str, Interval]:
        """The mean score of every group."""
        return {
            group: mean_interval([one.doc_id for one in found], [one.score for one in found])
            for group in dict.fromkeys(one.group for one in self.outcomes)
            if (found := self.of_group(group))
        }

    @property
    def scores(self) -> dict[str, Interval]:
        """Every formula of the task; the first one is its score."""
        told = [[getattr(one, key) for one in self.outcomes] for key in ("group", "doc_id", "score")]
        return {name: score_interval(*told, weights) for name, weights in self.formulas.items()}

    @property
    def failures(self) -> dict[str, int]:
        """How many images failed for each kind of reason, the most frequent first."""
        return dict(collections.Counter(kind for one in self.outcomes for kind in one.failures).most_common())

    def means(self) -> dict[str, float]:
        """Means of `FACTS` per image, and shares corrected and stopped by the cap; empty where unknown."""
        known = [one.facts for one in self.outcomes if one.facts]
        if not known:
            return {}
        means = {name: statistics.fmean(one[name] for one in known) for name in FACTS}
        return means | {
            "refined_images": statistics.fmean(one["corrections"] > 0 for one in known),
            "stopped_by_cap": statistics.fmean(one["stopped"] == "cap" for one in known),
        }

    def scalars(self) -> Iterator[tuple[str, float]]:
        """(name, value) pairs for a metric writer."""
        prefix = f"{self.task}/{self.arm}"
        for name, interval in self.scores.items():
            yield f"{prefix}/{name}", interval.mean
        for group, interval in self.groups.items():
            yield f"{prefix}/group/{group}", interval.mean
        for name, value in self.means().items():
            yield f"{prefix}/{name}", value
        for name, interval in {**self.process, **self.states}.items():
            yield f"{prefix}/process/{name}", interval.mean
        for kind, number in self.failures.items():
            yield f"{prefix}/failures/{kind}", number / len(self.outcomes)

    def to_json(self) -> dict[str, Any]:

        def named(key: str) -> dict[str, Any]:
            return {name: one.to_json() for name, one in getattr(self, key).items()}

        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "outcomes"}
        return {
            **kept,
            "scores": named("scores"),
            "groups": {g: {**i, "n": len(self.of_group(g))} for g, i in named("groups").items()},
            **{key: {d: counts_to_json(c) for d, c in getattr(self, key).items()} for key in COUNTED},
            "process": named("process"),
            "states": named("states"),
            "means": self.means(),
            "failures": self.failures,
            "outcomes": [dataclasses.asdict(one) for one in self.outcomes],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """Reads what `to_json` wrote; what follows from the outcomes is computed again."""
        fields = {field.name: data[field.name] for field in dataclasses.fields(cls)}
        counts = {key: {d: counts_from_json(c) for d, c in data[key].items()} for key in COUNTED}
        outcomes = tuple(Outcome(**one) for one in data["outcomes"])
        return cls(**{**fields, **counts, "outcomes": outcomes})


def save(path: str | os.PathLike[str], cells: Sequence[Cell], known: Mapping[str, Any]) -> pathlib.Path:
    """Writes a results file, whole or not at all; `known` is what is true of all its cells."""
    data = {"kind": KIND, "schema": SCHEMA, **known, "cells": [cell.to_json() for cell in cells]}
    files.write_json(path, data, indent=1, allow_nan=False)
    return pathlib.Path(path)


def load(path: str | os.PathLike[str]) -> list[Cell]:
    """The cells of a results file.

    Raises:
      ResultsError: it is missing, damaged, or no results file of this schema; names the file.
    """
    try:
        data = files.read_json(path)
        if not isinstance(data, Mapping) or data.get("kind") != KIND:
            raise ValueError("not a results file of process_gen.evaluate")
        if data.get("schema") != SCHEMA:
            raise ValueError(f"results schema {data.get('schema')!r}; this version reads {SCHEMA}")
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: {error}") from error
    try:
        cells = [Cell.from_json(one) for one in data["cells"]]
        for cell in cells:
            cell.to_json()  # fails if a field is of a wrong type
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: damaged results: {error!r}") from error
    return cells
