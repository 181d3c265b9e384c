"""What a benchmark is: prompts, how many images of each, where they lie, who judges them, how scores add up.

A task is a frozen dataclass, one file each, whose fields are its options
(`--task_args=geneval.metadata=FILE`). A judge looks at one image at a time.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from process_gen.common import files
from process_gen.evaluation.counts import Counts
from process_gen.evaluation.options import TaskError
from process_gen.services.options import GaveUp
from process_gen.trajectory.sampled import SampledTrajectory

Unjudged = GaveUp
"""A judge had no verdict on an image; the next run asks about it again."""


@dataclasses.dataclass(frozen=True)
class Doc:
    """One prompt of a task. Field names are those of lmms-eval.

    Attributes:
      doc_id: unique in its task.
      input: the prompt.
      group: of prompts whose mean score counts as one, as a category.
      target: what a judge has to know of it, JSON-like.
    """

    doc_id: str
    input: str
    group: str
    target: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def doc_hash(self) -> str:
        """Hash of prompt, group and target: 16 hexadecimal digits."""
        text = json.dumps([self.input, self.group, self.target], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a judge says of one image.

    Attributes:
      score: from 0 to 1; 1 is right.
      constraints: each with `text`, `ok` and `reason`.
      failures: kinds of failure, of the judge's own list.
      details: numbers and texts of the judge's own, JSON-like.
      raw: what the verdict was made from (a reply, detections), JSON-like.
    """

    score: float
    constraints: tuple[Mapping[str, Any], ...] = ()
    failures: tuple[str, ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    raw: Any = None


class Judge(Protocol):
    """Looks at an image.

    Attributes:
      name: who: `scenes-parser`, `mask2former+clip`, the name of a chat model.
      revision: of its weights or its code. Scores of two revisions never share a table.
      protocol: what is asked and how it is read: `geneval-hf`, `wise-legacy`.
      workers: how many images it may look at side by side.

    A judge whose use costs money may have a method `announce(docs, size)`. It is called before judging
    begins, and prints an estimate for one image of each prompt, of height and width `size`.
    """

    name: str
    revision: str
    protocol: str
    workers: int

    def __call__(self, doc: Doc, image: np.ndarray) -> Judgement:
        """Judges an image, [H, W, 3] uint8. Raises Unjudged: there is no verdict."""
        ...


@dataclasses.dataclass(frozen=True)
class Row:
    """One judged image, as scores are made from it.

    Attributes:
      doc: the prompt.
      seed: one of the evaluation's `--seeds`.
      index: which of the images of this prompt and seed.
      judgement: of the final image.
    """

    doc: Doc
    seed: int
    index: int
    judgement: Judgement


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """A benchmark.

    Attributes:
      name: in commands and tables.
      version: goes up when prompts, layout or the way scores add up change.
      traced: whether plans and drafts can be read exactly, so that `process` counts what happened.
      whole: whether a score over a part of its prompts has their number in its name.
      images: of each prompt.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    traced: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    images: int = 1

    @abc.abstractmethod
    def docs(self) -> Sequence[Doc]:
        """Its prompts, in the order of the benchmark.

        Raises:
          TaskError: the data are missing or broken; names the file and the line.
        """

    def judge(self) -> Judge | None:
        """Who judges its images; None where the task's own tools do, or nobody.

        Raises:
          TaskError, ServiceError: the judge cannot be had as asked; names what is missing.
        """
        return None

    def formulas(self, groups: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """Name -> group -> weight: a score is the weighted sum of the means of its groups.

        The first one is the task's main score.

        Args:
          groups: those that have images, in the task's order.
        """
        return {"score": {group: 1 / len(groups) for group in groups}}

    def place(self, doc: Doc, index: int) -> str | None:
        """Where the task's own tools look for an image, relative to the folder; None without a layout."""
        return None

    def lay_out(
        self, folder: str | os.PathLike[str], images: Iterable[tuple[Doc, int, pathlib.Path]]
    ) -> Sequence[pathlib.Path]:
        """Copies images to where the task's own tools look, and calls `write_layout`; returns the files.

        Args:
          folder: of the layout; made where there is none.
          images: prompt, which of its images, and a PNG file, in any order.

        Raises:
          TaskError: the layout cannot be made of these images.
        """
        written = []
        for doc, index, path in images:
            if (place := self.place(doc, index)) is not None:
                target = pathlib.Path(folder) / place
                target.parent.mkdir(parents=True, exist_ok=True)
                with files.whole(target) as scratch:
                    shutil.copyfile(path, scratch)
                written.append(target)
        return [*written, *self.write_layout(folder)]

    def write_layout(self, folder: str | os.PathLike[str]) -> Sequence[pathlib.Path]:
        """Writes the other files that its tools need into the folder of its layout; returns them."""
        return ()

    def read_layout(self, folder: str | os.PathLike[str]) -> Iterator[tuple[Doc, int, pathlib.Path]]:
        """The images in a folder of its layout, made by any program: prompt, which of its images, file.

        Raises:
          TaskError: the folder is not laid out so; names what is wrong.
        """
        root, found, docs = pathlib.Path(folder), 0, self.docs()
        if docs and self.place(docs[0], 0) is None:
            raise TaskError(f"{self.name} has no layout of files: it judges only what is drawn here")
        for doc in docs:
            for index in range(self.images):
                place = self.place(doc, index)
                if place is not None and (root / place).is_file():
                    found += 1
                    yield doc, index, root / place
        if not found:
            raise TaskError(f"{root} holds no image where {self.name} looks for one")

    def process(self, doc: Doc, trajectory: SampledTrajectory) -> Counts:
        """Counts the errors in a trajectory's steps exactly (`evaluation.process`); for `traced` tasks."""
        raise NotImplementedError(f"{self.name} is not traced")

    def write_results(self, rows: Sequence[Row], folder: str | os.PathLike[str]) -> Sequence[pathlib.Path]:
        """Writes the result files of the official scorer, if any; returns them."""
        return ()

    def summary(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """Figures beside the scores that the official scorer prints, if any."""
        return {}
