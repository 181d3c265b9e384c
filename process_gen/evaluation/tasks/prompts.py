"""Prompts of your own: a text file with one per line, JSON lines, or a table with a header (CSV, TSV).

A JSON line or a row has `prompt`, and may have `id`, `group` and other keys that the
question uses. With `question`, a chat model answers it with yes or no for each
image:

    --task_args=prompts.data=mine.txt --task_args=prompts.model=NAME
    --task_args=prompts.question="Does the picture show {prompt}?"
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from process_gen.common.names import check_name
from process_gen.evaluation.options import LONGEST_NAME, data_path, parse_json, read_text
from process_gen.evaluation.tasks.base import Doc, Judge, Judgement, TaskError
from process_gen.evaluation.tasks.chat_task import ChatTask, Question, values_of

SYSTEM = "You look at a picture and answer one question about it with a single word: yes or no."


@dataclasses.dataclass(frozen=True)
class Prompts(ChatTask):
    """The task; see the module.

    Attributes:
      data: the file; its name ends in `.jsonl` or `.ndjson`, `.csv` or `.tsv`, or it holds a prompt a line.
      question: to the judge, or a `.txt` file that holds it, with `{prompt}` and
        other keys of the JSON lines in braces. Without one nobody judges.
    """

    name: ClassVar[str] = "prompts"
    version: ClassVar[str] = "1"
    data: str = ""
    question: str = ""

    def docs(self) -> Sequence[Doc]:
        path = data_path(self.name, "data", self.data)
        docs: dict[str, Doc] = {}
        for number, entry in _entries(path):
            where = f"{path}, line {number}"
            if not isinstance(entry, dict):
                raise TaskError(f"{where}: expected an object with a prompt, got {type(entry).__name__}")
            doc = _doc({"id": f"{number:05}", "group": "all", **entry}, where)
            if doc.doc_id in docs:
                raise TaskError(f"{where}: id {doc.doc_id!r} comes twice")
            docs[doc.doc_id] = doc
        if not docs:
            raise TaskError(f"{path} holds no prompt")
        return list(docs.values())

    def judge(self) -> Judge | None:
        if not self.question:
            return None
        template = read_text(self.question).strip() if self.question.endswith(".txt") else self.question
        for doc in self.docs():
            for name in re.findall(r"\{(\w+)\}", template):
                check_name(
                    name, values_of(doc), f"name in the question, for prompt {doc.doc_id!r},", TaskError
                )
        return self.chat_judge(Question("yes or no (own question)", SYSTEM, template, _read, 200))

    def place(self, doc: Doc, index: int) -> str | None:
        return f"{doc.doc_id}_{index:02}.png"


def _entries(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """Yields the number of each line that is not empty, and what it says."""
    kind = path.suffix.lower()
    if kind in (".json", ".parquet", ".gz", ".zip"):
        raise TaskError(
            f"{path}: prompts are read from a text file with one a line, from JSON lines (.jsonl), or from a "
            "table with a header (.csv, .tsv)"
        )
    lines = read_text(path).split("\n")
    if kind in (".csv", ".tsv"):
        told = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
        rows = csv.DictReader((f"{line}\n" for line in lines), **told)
        try:
            if "prompt" not in (rows.fieldnames or ()):
                raise TaskError(f"{path}: its first line names no column prompt, it has {rows.fieldnames}")
            for row in rows:
                if None in row:
                    raise TaskError(
                        f"{path}, line {rows.line_num}: more fields than columns; quote the prompt"
                    )
                yield rows.line_num, {key: value for key, value in row.items() if value}
        except csv.Error as error:
            raise TaskError(f"{path}, after line {rows.line_num}: {error}") from None
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            is_json = kind in (".jsonl", ".ndjson")
            yield number, parse_json(line, f"{path}, line {number}") if is_json else {"prompt": line.strip()}


def _doc(entry: Mapping[str, Any], where: str) -> Doc:
    prompt, group, doc_id = entry.get("prompt"), entry["group"], entry["id"]
    for key, value in (("prompt", prompt), ("group", group)):
        if not isinstance(value, str) or not value.strip():
            raise TaskError(f"{where}: {key} must be a text, got {value!r}")
    fits = re.fullmatch(r"[^/\\\0\s.][^/\\\0\n]{0,199}", str(doc_id))
    if not isinstance(doc_id, str | int) or not fits or len(f"{doc_id}_000.png".encode()) > LONGEST_NAME:
        raise TaskError(f"{where}: id must be a number or a text that can be a file name, got {doc_id!r}")
    others = {key: value for key, value in entry.items() if key not in ("prompt", "group", "id")}
    return Doc(str(doc_id), prompt, group, others)


def _read(answer: str) -> Judgement | None:
    """Scores 1 for an answer that begins with yes, 0 for no; None for any other."""
    word = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    return Judgement(float(word[1].lower() == "yes")) if word else None
