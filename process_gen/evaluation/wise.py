"""WISE: categories, answers, scores and files, for its two editions.

`legacy` is the benchmark of the paper: three marks of 0 to 2 per image. `verified`
has other prompts under the same ids, other bounds between categories, and one
mark of 0 or 1. Score files do not say which they are, so never mix them.

An overall number needs every one of the 1,000 ids, as the official code does.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from process_gen.common import files

EditionName = Literal["legacy", "verified"]

CATEGORIES = ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY")
IDS = 1000

AGGREGATIONS: Mapping[str, Mapping[str, float]] = {
    "legacy weights": dict(zip(CATEGORIES, (0.4, 0.167, 0.133, 0.1, 0.1, 0.1), strict=True)),
    "verified weights": dict(zip(CATEGORIES, (0.4, 0.12, 0.12, 0.12, 0.12, 0.12), strict=True)),
    "mean of six (BAGEL)": dict.fromkeys(CATEGORIES, 1 / 6),
}
"""Three ways from the means of the categories to one number; they may lie far apart."""

STEMS = {
    "cultural_common_sense": CATEGORIES[:1],
    "spatio-temporal_reasoning": CATEGORIES[1:3],
    "natural_science": CATEGORIES[3:],
}
"""The official files, and the categories of each."""


class WiseError(ValueError):
    """Data or scores that cannot be read or added up; the message names file and entry."""


@dataclasses.dataclass(frozen=True)
class Edition:
    """One of the two benchmarks.

    Attributes:
      last: the last id of each category.
      weights: its own one of `AGGREGATIONS`.
      suffix: of its data files.
      whole: its files that hold all prompts in one.
    """

    last: tuple[int, ...]
    weights: str
    suffix: str
    whole: str


EDITIONS: Mapping[str, Edition] = {
    "legacy": Edition((400, 567, 700, 800, 900, 1000), "legacy weights", "", "final_data.json"),
    "verified": Edition((400, 520, 640, 760, 880, 1000), "verified weights", "_verified", "merge.json"),
}


class Marks(NamedTuple):
    """Those of the legacy edition, from 0 to 2."""

    consistency: int
    realism: int
    aesthetic_quality: int

    @property
    def in_range(self) -> bool:
        return all(0 <= mark <= 2 for mark in self)

    @property
    def score(self) -> float:
        """From 0 to 1 where the marks are in range."""
        return (0.7 * self.consistency + 0.2 * self.realism + 0.1 * self.aesthetic_quality) / 2


class Item(NamedTuple):
    """One entry of the data; `subcategory` is only copied into score files."""

    prompt_id: int
    prompt: str
    explanation: str
    subcategory: str


def category(prompt_id: int, edition: str) -> str:
    """The category of an id, as the official code has it: by the id alone."""
    if not 1 <= prompt_id <= IDS:
        raise WiseError(f"prompt_id must be from 1 to {IDS}, got {prompt_id}")
    last = EDITIONS[edition].last
    return next(name for name, end in zip(CATEGORIES, last, strict=True) if prompt_id <= end)


_MARK = re.compile(r"(consistency|realism|aesthetic quality)\*{0,2}\s*:?\s*([0-9])", re.IGNORECASE)
_SCORE = re.compile(r"score\*{0,2}\s*:?\s*([01])\b", re.IGNORECASE)


def parse_legacy(answer: str) -> Marks | None:
    """The marks in an answer, as the official code finds them; None where one is missing.

    A label that comes twice counts as it comes last. Three bare lines are
    taken in order. A mark may be any digit: whether 5 is one is the caller's to say.
    """
    if bare := re.fullmatch(r"\s*([0-9])\s*\n\s*([0-9])\s*\n\s*([0-9])\s*", answer):
        return Marks(*map(int, bare.groups()))
    found = {label.lower().replace(" ", "_"): int(mark) for label, mark in _MARK.findall(answer)}
    return Marks(**found) if len(found) == len(Marks._fields) else None


def parse_verified(answer: str) -> int | None:
    """0 or 1, as the official code finds it: the first one behind "score", or the whole answer."""
    found = _SCORE.search(answer) or re.fullmatch(r"\s*([01])\s*", answer)
    return int(found[1]) if found else None


def missing_ids(prompt_ids: Iterable[int]) -> list[int]:
    """Those of the 1,000 that are not there, in order."""
    return sorted(set(range(1, IDS + 1)) - set(prompt_ids))


def aggregate(scores: Sequence[tuple[int, float]], edition: str) -> dict[str, float]:
    """The means of the categories, then all `AGGREGATIONS`, of (prompt_id, score from 0 to 1).

    An id that comes twice counts twice, as in the official code.

    Raises:
      WiseError: ids are missing, or none of the benchmark's.
    """
    if missing := missing_ids(prompt_id for prompt_id, _ in scores):
        some = ", ".join(map(str, missing[:10])) + (", ..." if missing[10:] else "")
        raise WiseError(f"no overall score: {len(missing)} of {IDS} ids have none: {some}")
    lists: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    for prompt_id, score in scores:
        lists[category(prompt_id, edition)].append(score)
    means = {name: sum(found) / len(found) for name, found in lists.items()}
    overall = {
        name: sum(weight * means[group] for group, weight in weights.items())
        for name, weights in AGGREGATIONS.items()
    }
    return means | overall


def data_files(path: str | os.PathLike[str], edition: str) -> list[pathlib.Path]:
    """The files of an edition in a folder: its three parts, or the one that holds all; a file is itself.

    Raises:
      WiseError: the folder holds neither.
    """
    path, made = pathlib.Path(path), EDITIONS[edition]
    if not path.is_dir():
        return [path]
    parts = [path / f"{stem}{made.suffix}.json" for stem in STEMS]
    if missing := [part.name for part in parts if not part.is_file()]:
        if (path / made.whole).is_file():
            return [path / made.whole]
        raise WiseError(f"{path}: no {', '.join(missing)} and no {made.whole}, the files of {edition}")
    return parts


def read_data(paths: Iterable[str | os.PathLike[str]]) -> list[Item]:
    """The entries of data files of one edition, by id.

    Raises:
      WiseError: a file cannot be read or is no list of entries, or an id is wrong or comes twice.
    """
    items: dict[int, Item] = {}
    for path in paths:
        try:
            entries = files.read_json(path)
        except (OSError, ValueError) as error:
            raise WiseError(f"{path}: {error}") from error
        if not isinstance(entries, list):
            raise WiseError(f"{path}: expected a list of prompts, got {type(entries).__name__}")
        for number, entry in enumerate(entries):
            item = _read_item(entry, f"{path}: entry {number}")
            if item.prompt_id in items:
                raise WiseError(f"{path}: prompt_id {item.prompt_id} comes twice")
            items[item.prompt_id] = item
    return [items[prompt_id] for prompt_id in sorted(items)]


def _read_item(entry: Any, where: str) -> Item:
    if not isinstance(entry, dict):
        raise WiseError(f"{where}: expected an object, got {type(entry).__name__}")
    prompt_id = entry.get("prompt_id")
    if type(prompt_id) is not int or not 1 <= prompt_id <= IDS:
        raise WiseError(f"{where}: prompt_id must be a whole number from 1 to {IDS}, got {prompt_id!r}")
    for key in ("Prompt", "Explanation"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise WiseError(f"{where}: {key} must be a text, got {entry.get(key)!r}")
    return Item(prompt_id, entry["Prompt"], entry["Explanation"], str(entry.get("Subcategory", "")))


def read_scores(paths: Iterable[str | os.PathLike[str]], edition: str) -> list[tuple[int, float]]:
    """(prompt_id, score from 0 to 1) of every line of `*_scores_results.jsonl` files.

    Raises:
      WiseError: a line is broken, of the other edition, or has a mark out of
        range: a failed judge leaves 9.9, which the official code would count.
    """
    scores = []
    for path in paths:
        try:
            lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise WiseError(f"{path}: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = files.from_json(line)
                marks = (
                    Marks(*(entry[key] for key in Marks._fields)) if edition == "legacy" else entry["score"]
                )
                right = marks.in_range if edition == "legacy" else marks in (0, 1)
                prompt_id = operator.index(entry["prompt_id"])
            except (ValueError, TypeError, KeyError) as error:
                raise WiseError(f"{path}, line {number}: no scores of {edition}: {error!r}") from error
            if not right:
                raise WiseError(f"{path}, line {number}: a mark is out of range, judge it again: {line}")
            scores.append((prompt_id, marks.score if edition == "legacy" else float(marks)))
    return scores


def write_results(
    judged: Iterable[tuple[Item, str, Mapping[str, float]]], folder: str | os.PathLike[str], edition: str
) -> list[pathlib.Path]:
    """Writes `*_full_results.json` and `*_scores_results.jsonl`, a pair for each official data file.

    Args:
      judged: entry, the judge's answer, and its marks: `consistency`,
        `realism` and `aesthetic_quality`, or `score`.
    """
    judged = sorted(judged, key=lambda one: one[0].prompt_id)
    folder, written = pathlib.Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for stem, names in STEMS.items():
        full, scores = [], []
        for item, answer, marks in judged:
            if category(item.prompt_id, edition) not in names:
                continue
            image = f"{item.prompt_id}.png"
            told = {"prompt": item.prompt, "key": item.explanation, "image_path": image, "evaluation": answer}
            full.append({"prompt_id": item.prompt_id, **told})
            scores.append({"prompt_id": item.prompt_id, "Subcategory": item.subcategory, **marks})
        if not full:
            continue
        written += [folder / f"{stem}_full_results.json", folder / f"{stem}_scores_results.jsonl"]
        files.write_json(written[-2], full, indent=2, ensure_ascii=False)
        with files.whole(written[-1]) as scratch:
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in scores]
            scratch.write_text("".join(lines), encoding="utf-8")
    return written
