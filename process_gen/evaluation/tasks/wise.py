"""WISE: 1,000 prompts that need knowledge of the world, marked by a chat model.

The prompts are the files of the WISE repository, one folder of them or files
joined by `:`; neither they nor the official text for the judge are shipped. The
judge gets a text of our own, so scores compare with published ones only where
`rubric` (and `system`) name files with the official texts.

A WISE number says four things: edition, judge, rubric, aggregation. All three
aggregations stand side by side, that of the edition first. They bear their names
only where all six categories have images. A category with gaps still has a mean:
`missing_ids` of the summary counts the gaps, and `official_overall`, which the
official code refuses to give with one id missing, is there only without any.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

from process_gen.evaluation import wise
from process_gen.evaluation.tasks.base import Doc, Judge, Judgement, Row, TaskError
from process_gen.evaluation.tasks.chat_task import ChatTask, Question
from process_gen.evaluation.tasks.reading import data_path, read_text

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
"""What the judge is asked; our own words, so the protocol is called after them."""

_MAX_TOKENS = {"legacy": 2000, "verified": 500}
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
    edition: wise.EditionName = "legacy"
    rubric: str = ""
    system: str = ""

    def docs(self) -> Sequence[Doc]:
        paths = [data_path(self.name, "data", part) for part in self.data.split(os.pathsep)]
        if strange := [path for path in paths if path.is_file() and self._of_the_other(path)]:
            raise TaskError(f"{strange[0]} is by its name no file of edition={self.edition}")
        try:
            items = wise.read_data(file for path in paths for file in wise.data_files(path, self.edition))
        except wise.WiseError as error:
            raise TaskError(str(error)) from error
        return [self._doc(item) for item in items]

    def _of_the_other(self, path: pathlib.Path) -> bool:
        return ("_verified" in path.stem) != (self.edition == "verified") and path.stem.startswith(
            tuple(wise.STEMS)
        )

    def _doc(self, item: wise.Item) -> Doc:
        target = {"explanation": item.explanation, "subcategory": item.subcategory}
        return Doc(str(item.prompt_id), item.prompt, wise.category(item.prompt_id, self.edition), target)

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
                values=lambda doc: {"prompt": doc.input, "explanation": doc.target["explanation"]},
                read=_read_legacy if self.edition == "legacy" else _read_verified,
                max_tokens=_MAX_TOKENS[self.edition],
            )
        )

    def formulas(self, groups: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """The edition's aggregation, then the others; with categories missing a mean of another name."""
        if set(groups) != set(wise.CATEGORIES):
            return {"mean of the categories seen (no WISE score)": {name: 1 / len(groups) for name in groups}}
        own = wise.EDITIONS[self.edition].weights
        return {own: wise.AGGREGATIONS[own], **wise.AGGREGATIONS}

    def place(self, doc: Doc, index: int) -> str | None:
        """`{prompt_id}.png`; official tools know one image per prompt, the first."""
        return f"{doc.doc_id}.png" if index == 0 else None

    def write_results(self, rows: Sequence[Row], folder: str | os.PathLike[str]) -> Sequence[pathlib.Path]:
        """The official files; of several seeds or images in a folder each, since an id must come once."""
        sets = _sets(rows)
        written: list[pathlib.Path] = []
        for (seed, index), found in sets.items():
            place = pathlib.Path(folder) / ("" if len(sets) == 1 else f"seed_{seed}_image_{index}")
            judged = [(_item(row.doc), _answer(row.judgement), row.judgement.details) for row in found]
            written += wise.write_results(judged, place, self.edition)
        return written

    def summary(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """`missing_ids` of the 1,000, over all seeds; `official_overall` where there are none."""
        sets = _sets(rows)
        ids = [[int(row.doc.doc_id) for row in found] for found in sets.values()] or [[]]
        missing = sum(len(wise.missing_ids(one)) for one in ids)
        if missing:
            return {"missing_ids": missing}
        scores = [(int(row.doc.doc_id), row.judgement.score) for row in rows]
        overall = wise.aggregate(scores, self.edition)[wise.EDITIONS[self.edition].weights]
        return {"missing_ids": 0, "official_overall": overall}


def _read_legacy(answer: str) -> Judgement | None:
    """The official code counts a mark of 5 as 5; here such an answer is none."""
    marks = wise.parse_legacy(answer)
    if marks is None or not marks.in_range:
        return None
    details = {name: float(mark) for name, mark in marks._asdict().items()}
    return Judgement(marks.score, details=details)


def _read_verified(answer: str) -> Judgement | None:
    score = wise.parse_verified(answer)
    return None if score is None else Judgement(float(score), details={"score": score})


def _sets(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    """Rows by seed and image: in each an id comes once."""
    sets: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        sets.setdefault((row.seed, row.index), []).append(row)
    return sets


def _item(doc: Doc) -> wise.Item:
    return wise.Item(int(doc.doc_id), doc.input, doc.target["explanation"], doc.target["subcategory"])


def _answer(judgement: Judgement) -> str:
    return judgement.raw["answer"] if isinstance(judgement.raw, Mapping) and "answer" in judgement.raw else ""
