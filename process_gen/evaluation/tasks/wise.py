"""WISE: 1,000 prompts that need knowledge of the world, marked by a chat model.

The prompts are the files of the WISE repository, one folder of them or files
joined by `:`; neither they nor the official text for the judge are shipped. The
judge gets a text of our own, so scores compare with published ones only where
`rubric` (and `system`) name files with the official texts.

Edition `legacy` is the benchmark of the paper: three marks of 0 to 2 per image. `verified`
has other prompts under the same ids, other bounds between categories, and one
mark of 0 or 1. Score files do not say which they are, so never mix them.

A WISE number depends on four things: edition, judge, rubric, aggregation. All
three aggregations are reported, that of the edition first; they have these names
only where all six categories have images. A category with missing ids still has a
mean: `missing_ids` of the summary counts them. `official_overall` is there only
if none is missing, since the official code gives no overall score otherwise.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from process_gen.common import files
from process_gen.evaluation.options import data_path, parse_json, read_text
from process_gen.evaluation.tasks.base import Doc, Judge, Judgement, Row, TaskError
from process_gen.evaluation.tasks.chat_task import ChatTask, Question

EditionName = Literal["legacy", "verified"]

CATEGORIES = ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY")
IDS = 1000

AGGREGATIONS: Mapping[str, Mapping[str, float]] = {
    "legacy weights": dict(zip(CATEGORIES, (0.4, 0.167, 0.133, 0.1, 0.1, 0.1), strict=True)),
    "verified weights": dict(zip(CATEGORIES, (0.4, 0.12, 0.12, 0.12, 0.12, 0.12), strict=True)),
    "mean of six (BAGEL)": dict.fromkeys(CATEGORIES, 1 / 6),
}
"""Three ways to weight the means of the categories; the overall scores may lie far apart."""

STEMS = {
    "cultural_common_sense": CATEGORIES[:1],
    "spatio-temporal_reasoning": CATEGORIES[1:3],
    "natural_science": CATEGORIES[3:],
}
"""The official files, and the categories of each."""


MARKS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
"""The three marks of the legacy edition, each from 0 to 2, and their weights."""

SYSTEM = (
    "You check pictures that a program drew from a short text. You follow the marking scheme to the letter."
)

_TASK = """A program was given PROMPT and drew the attached picture. The prompt does not spell out all
that it asks for: EXPLANATION says what somebody who knows the matter expects to see.

PROMPT: "{prompt}"
EXPLANATION: "{explanation}"

"""

RUBRICS = {
    "legacy": _TASK
    + """Give three marks, each 0, 1 or 2.

Consistency: is what prompt and explanation ask for in the picture?
  0: the main thing is absent or wrong. 1: part of it is there. 2: all of it is there and right.
Realism: could this be seen, whatever it shows?
  0: impossible shapes, light or materials. 1: believable with visible slips. 2: no slip to be found.
Aesthetic Quality: is it well made as a picture?
  0: careless. 1: in order, nothing more. 2: composition, colour and finish of a master.

Be strict: between two marks, give the lower one. Answer in three lines and nothing else, as in
Consistency: 1
Realism: 1
Aesthetic Quality: 0
""",
    "verified": _TASK
    + """Score 1 if the picture shows what the explanation says has to be seen, and nothing in it
contradicts that. Otherwise score 0, also when you cannot tell. Style and finish do not count.

Answer in one line and nothing else, as in
Score: 0
""",
}
"""What the judge is asked. The words are not the official ones, so the protocol says `own rubric`."""

_MARK = re.compile(r"(consistency|realism|aesthetic quality)\*{0,2}\s*:?\s*([0-9])", re.IGNORECASE)
_SCORE = re.compile(r"score\*{0,2}\s*:?\s*([01])\b", re.IGNORECASE)


def read_legacy(answer: str) -> Judgement | None:
    """The verdict of an answer, with marks as the official code finds them; None where one is missing.

    A label that comes twice counts as it comes last. Three bare lines are taken in order. None as well where
    a mark is above 2, which the official code would count as it is.
    """
    if bare := re.fullmatch(r"\s*([0-9])\s*\n\s*([0-9])\s*\n\s*([0-9])\s*", answer):
        found = dict(zip(MARKS, bare.groups(), strict=True))
    else:
        found = {label.lower().replace(" ", "_"): mark for label, mark in _MARK.findall(answer)}
    if len(found) < len(MARKS) or max(found.values()) > "2":
        return None
    marks = {name: float(found[name]) for name in MARKS}
    return Judgement(sum(weight * marks[name] for name, weight in MARKS.items()) / 2, details=marks)


def read_verified(answer: str) -> Judgement | None:
    """The verdict of an answer, as the official code finds it: the first one behind "score", or all of it."""
    found = _SCORE.search(answer) or re.fullmatch(r"\s*([01])\s*", answer)
    return Judgement(float(found[1]), details={"score": int(found[1])}) if found else None


@dataclasses.dataclass(frozen=True)
class Edition:
    """One of the two editions of the benchmark.

    Attributes:
      last: the last id of each category.
      weights: its official key of `AGGREGATIONS`.
      suffix: of its data files.
      whole: the name of the file that holds all of its prompts.
      read: reads an answer of the judge.
      max_tokens: of an answer.
    """

    last: tuple[int, ...]
    weights: str
    suffix: str
    whole: str
    read: Callable[[str], Judgement | None]
    max_tokens: int


EDITIONS: Mapping[str, Edition] = {
    "legacy": Edition(
        (400, 567, 700, 800, 900, 1000), "legacy weights", "", "final_data.json", read_legacy, 2000
    ),
    "verified": Edition(
        (400, 520, 640, 760, 880, 1000), "verified weights", "_verified", "merge.json", read_verified, 500
    ),
}

_OFFICIAL = {"{prompt_data['Prompt']}": "{prompt}", "{prompt_data['Explanation']}": "{explanation}"}


@dataclasses.dataclass(frozen=True)
class Wise(ChatTask):
    """The task; see the module.

    Attributes:
      data: folder with the files of the edition, or files joined by `:`.
      edition: `legacy`, the paper's, or `verified`.
      rubric: text file to ask the judge instead of our own, with `{prompt}` and
        `{explanation}` (or the braces that the official code has there).
      system: text file with the system message.
    """

    name: ClassVar[str] = "wise"
    version: ClassVar[str] = "1"
    whole: ClassVar[bool] = True
    data: str = ""
    edition: EditionName = "legacy"
    rubric: str = ""
    system: str = ""

    def docs(self) -> Sequence[Doc]:
        paths = [data_path(self.name, "data", part) for part in self.data.split(os.pathsep)]
        for path in paths:
            of_this = ("_verified" in path.stem) == (self.edition == "verified")
            if path.is_file() and path.stem.startswith(tuple(STEMS)) and not of_this:
                raise TaskError(f"{path} is by its name no file of edition={self.edition}")
        return read_data((file for path in paths for file in data_files(path, self.edition)), self.edition)

    def judge(self) -> Judge | None:
        asked = self.rubric or self.system
        template, system = RUBRICS[self.edition], SYSTEM
        if self.rubric:
            template = read_text(self.rubric)
            for official, ours in _OFFICIAL.items():
                template = template.replace(official, ours)
            if missing := [name for name in _OFFICIAL.values() if name not in template]:
                raise TaskError(f"{self.rubric}: the rubric has no {' and no '.join(missing)}")
        if self.system:
            system = read_text(self.system).strip()
        short = hashlib.sha256(f"{system}\n{template}".encode()).hexdigest()[:8]
        return self.chat_judge(
            Question(
                protocol=f"wise-{self.edition} ({f'rubric {short}' if asked else 'own rubric'})",
                system=system,
                template=template,
                read=EDITIONS[self.edition].read,
                max_tokens=EDITIONS[self.edition].max_tokens,
            )
        )

    def formulas(self, groups: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """The edition's aggregation, then the others; if a category is missing, a mean of another name."""
        if set(groups) != set(CATEGORIES):
            return {"mean of the categories seen (no WISE score)": {name: 1 / len(groups) for name in groups}}
        own = EDITIONS[self.edition].weights
        return {own: AGGREGATIONS[own], **AGGREGATIONS}

    def place(self, doc: Doc, index: int) -> str | None:
        """`{prompt_id}.png`; official tools know one image per prompt, the first."""
        return f"{doc.doc_id}.png" if index == 0 else None

    def write_results(self, rows: Sequence[Row], folder: str | os.PathLike[str]) -> Sequence[pathlib.Path]:
        """Writes the official files, for several seeds or images in a folder each: an id must come once."""
        sets, written = _sets(rows), []
        for (seed, index), found in sets.items():
            place = "" if len(sets) == 1 else f"seed_{seed}_image_{index}"
            written += _write(found, pathlib.Path(folder, place))
        return written

    def summary(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """`missing_ids` of the 1,000, over all seeds and images; if 0, `official_overall` too."""
        missing = sum(IDS - len(found) for found in _sets(rows).values()) if rows else IDS
        if missing:
            return {"missing_ids": missing}
        scores = collections.defaultdict(list)
        for row in rows:
            scores[row.doc.group].append(row.judgement.score)
        weights = AGGREGATIONS[EDITIONS[self.edition].weights]
        overall = sum(weight * statistics.fmean(scores[name]) for name, weight in weights.items())
        return {"missing_ids": 0, "official_overall": overall}


def category(prompt_id: int, edition: str) -> str:
    """The category of an id from 1 to `IDS`, as the official code has it: by the id alone."""
    last = EDITIONS[edition].last
    return next(name for name, end in zip(CATEGORIES, last, strict=True) if prompt_id <= end)


def data_files(path: str | os.PathLike[str], edition: str) -> list[pathlib.Path]:
    """The files of an edition in a folder: its three parts, or the one that holds all; of a file, itself.

    Raises:
      TaskError: the folder holds neither.
    """
    path, made = pathlib.Path(path), EDITIONS[edition]
    if not path.is_dir():
        return [path]
    parts = [path / f"{stem}{made.suffix}.json" for stem in STEMS]
    if missing := [part.name for part in parts if not part.is_file()]:
        if (path / made.whole).is_file():
            return [path / made.whole]
        raise TaskError(f"{path}: no {', '.join(missing)} and no {made.whole}, the files of {edition}")
    return parts


def read_data(paths: Iterable[str | os.PathLike[str]], edition: str) -> list[Doc]:
    """The prompts of data files of one edition, by id.

    Raises:
      TaskError: a file cannot be read or is no list of entries, or an id is wrong or comes twice.
    """
    docs: dict[int, Doc] = {}
    for path in paths:
        entries = parse_json(read_text(path), str(path))
        if not isinstance(entries, list):
            raise TaskError(f"{path}: expected a list of prompts, got {type(entries).__name__}")
        for number, entry in enumerate(entries):
            prompt_id = _checked(entry, f"{path}: entry {number}")["prompt_id"]
            if prompt_id in docs:
                raise TaskError(f"{path}: prompt_id {prompt_id} comes twice")
            target = {"explanation": entry["Explanation"], "subcategory": str(entry.get("Subcategory", ""))}
            docs[prompt_id] = Doc(str(prompt_id), entry["Prompt"], category(prompt_id, edition), target)
    return [docs[prompt_id] for prompt_id in sorted(docs)]


def _checked(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise TaskError(f"{where}: expected an object, got {type(entry).__name__}")
    prompt_id = entry.get("prompt_id")
    if type(prompt_id) is not int or not 1 <= prompt_id <= IDS:
        raise TaskError(f"{where}: prompt_id must be a whole number from 1 to {IDS}, got {prompt_id!r}")
    for key in ("Prompt", "Explanation"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise TaskError(f"{where}: {key} must be a text, got {entry.get(key)!r}")
    return entry


def _sets(rows: Sequence[Row]) -> Mapping[tuple[int, int], list[Row]]:
    """Rows by seed and image: in each an id comes once."""
    sets = collections.defaultdict(list)
    for row in rows:
        sets[row.seed, row.index].append(row)
    return sets


def _write(rows: Sequence[Row], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes `*_full_results.json` and `*_scores_results.jsonl`, a pair for each official data file."""
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for stem, names in STEMS.items():
        full, scores = [], []
        of_file = [row for row in rows if row.doc.group in names]
        for row in sorted(of_file, key=lambda row: int(row.doc.doc_id)):
            doc, said = row.doc, row.judgement
            prompt_id = {"prompt_id": int(doc.doc_id)}
            image = {"image_path": f"{doc.doc_id}.png", "evaluation": (said.raw or {}).get("answer", "")}
            full.append({**prompt_id, "prompt": doc.input, "key": doc.target["explanation"], **image})
            scores.append({**prompt_id, "Subcategory": doc.target["subcategory"], **said.details})
        if full:
            written += [folder / f"{stem}_full_results.json", folder / f"{stem}_scores_results.jsonl"]
            files.write_json(written[-2], full, indent=2, ensure_ascii=False)
            files.write_json_lines(written[-1], scores, ensure_ascii=False)
    return written
