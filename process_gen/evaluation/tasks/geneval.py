"""GenEval, drawn for the official scorer or judged here.

    geneval      images in the official layout, for the official scorer to judge
    geneval-hf   the same prompts, judged by the official decision with a detector and a
                 classifier of colours that `transformers` reads; never to be called GenEval

The official prompts are not shipped: `metadata` is the path of `evaluation_metadata.jsonl`,
or of a file that `geneval.prompts` drew.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.common.files import write_json_lines
from process_gen.evaluation import coloring, detectors
from process_gen.evaluation.geneval import decision, files
from process_gen.evaluation.tasks.base import Doc, Judge, Judgement, Row, Task, TaskError


@dataclasses.dataclass(frozen=True)
class Geneval(Task):
    """GenEval's prompts, laid out for the official scorer.

    Attributes:
      images: of each prompt.
      metadata: path of the prompts.
    """

    name = "geneval"
    version = "1"
    images: int = 4
    metadata: str = ""

    @functools.cached_property
    def _prompts(self) -> list[files.Metadata]:
        if not self.metadata:
            raise TaskError(f"{self.name} needs metadata=FILE: its prompts are not shipped")
        return files.read_metadata(pathlib.Path(self.metadata).expanduser())

    def docs(self) -> Sequence[Doc]:
        return [Doc(f"{n:05d}", one["prompt"], one["tag"], one) for n, one in enumerate(self._prompts)]

    def place(self, doc: Doc, index: int) -> str | None:
        return f"{doc.doc_id}/samples/{index:04d}.png"

    def write_layout(self, folder: str | os.PathLike[str]) -> Sequence[pathlib.Path]:
        """Writes `metadata.jsonl` for each prompt that has images, and all prompts into one file."""
        root = pathlib.Path(folder)
        for doc in self.docs():
            if (root / self.place(doc, 0)).parent.is_dir():
                files.write_metadata(root / doc.doc_id / "metadata.jsonl", [doc.target])
        return [files.write_metadata(root / "evaluation_metadata.jsonl", self._prompts)]

    def read_layout(self, folder: str | os.PathLike[str]) -> Iterator[tuple[Doc, int, pathlib.Path]]:
        """Reads images by the official rules: a folder's `metadata.jsonl`, not its name, tells its prompt.

        Raises:
          TaskError: see `files.read_images`; or a prompt is not in `metadata`, or has more than `images`.
        """
        numbers, same = collections.Counter(), collections.defaultdict(list)  # prompts of equal metadata
        for doc in self.docs():
            same[_text(doc.target)].append(doc)
        for name, metadata, path in files.read_images(folder):
            if not (known := same.get(_text(metadata))):
                raise TaskError(f"{path.parents[1]}: {metadata['prompt']!r} is not in {self.metadata}")
            doc = next((one for one in known if one.doc_id == f"{int(name):05d}"), known[0])
            index = numbers[doc.doc_id]
            if index == self.images:
                raise TaskError(
                    f"{folder}: {metadata['prompt']!r} has more than {self.images} images; "
                    f"give {self.name}.images=N"
                )
            numbers[doc.doc_id] += 1
            yield doc, index, path
        if not numbers:
            raise TaskError(f"{folder} holds no image where {self.name} looks for one")


def _text(metadata: Mapping[str, Any]) -> str:
    return json.dumps(dict(metadata), sort_keys=True)


@dataclasses.dataclass(frozen=True)
class GenevalHF(Geneval):
    """GenEval's prompts, judged here by a detector and a classifier of colours.

    Attributes:
      detector: a folder of weights: Mask2Former, as the official detector is, RT-DETR or OWL.
      clip: a folder of weights: CLIP or SigLIP; the official one is CLIP ViT-L/14 of OpenAI.
      threshold, counting_threshold: the official ones, which were set for Mask2Former.
    """

    name = "geneval-hf"
    version = "1"
    detector: str = ""
    clip: str = ""
    threshold: float = decision.OFFICIAL.threshold
    counting_threshold: float = decision.OFFICIAL.counting_threshold

    def judge(self) -> Judge:
        """Makes the judge; its models are loaded when the first image is judged.

        Raises:
          TaskError: see `detectors.load_detector`; or the detector cannot find a class of the prompts.
        """
        clauses = ((*one.get("include", ()), *one.get("exclude", ())) for one in self._prompts)
        classes = list(dict.fromkeys(clause["class"] for some in clauses for clause in some))
        detector = detectors.load_detector(f"{self.name}.detector", self.detector, classes)
        if unknown := [one for one in classes if one not in detector.classes]:
            raise TaskError(f"{self.name}.detector: {self.detector} cannot find {', '.join(unknown[:5])}")
        classifier = coloring.ColorClassifier(f"{self.name}.clip", self.clip)
        options = decision.Options(threshold=self.threshold, counting_threshold=self.counting_threshold)
        return DetectorJudge(detector, classifier, options)

    def write_results(self, rows: Sequence[Row], folder: str | os.PathLike[str]) -> Sequence[pathlib.Path]:
        """`results.jsonl` of the official keys, sorted by folder and name.

        The order matters to scorers that name columns by the order of the tags.
        """
        results = [
            {
                "filename": f"seed_{row.seed}/{self.place(row.doc, row.index)}",
                "tag": row.doc.group,
                "prompt": row.doc.input,
                "correct": row.judgement.score == 1,
                "reason": row.judgement.details["reason"],
                "metadata": json.dumps(dict(row.doc.target)),
                "details": json.dumps(row.judgement.details["boxes"]),
            }
            for row in rows
        ]
        results.sort(key=lambda one: one["filename"])
        path = pathlib.Path(folder, "results.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, results)
        return [path]

    def summary(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """The share of images that are correct, and that of prompts with any correct image.

        Prompts of equal metadata count once.
        """
        if not rows:
            return {}
        prompts = collections.defaultdict(list)
        for row in rows:
            prompts[_text(row.doc.target)].append(row.judgement.score == 1)
        return {
            "correct_images": sum(map(sum, prompts.values())) / len(rows),
            "correct_prompts": sum(map(any, prompts.values())) / len(prompts),
        }


class DetectorJudge:
    """A detector, a classifier of colours and the official decision.

    Attributes:
      name, revision: of both models.
      protocol: `geneval-hf`, with the thresholds where they are not the official ones.
    """

    workers = 1

    def __init__(
        self,
        detector: detectors.Detector,
        classifier: coloring.ColorClassifier,
        options: decision.Options = decision.OFFICIAL,
    ):
        self._detector, self._classifier, self._options = detector, classifier, options
        self.name = f"{detector.name}+{classifier.name}"
        changed = "" if options == decision.OFFICIAL else f"-{options.threshold}-{options.counting_threshold}"
        self.protocol = f"geneval-hf{changed}"

    @property
    def revision(self) -> str:
        return f"{self._detector.revision}+{self._classifier.revision}"

    def __call__(self, doc: Doc, image: np.ndarray) -> Judgement:
        found = self._detector.detect(image)
        colors: list[dict[str, Any]] = []

        def colors_of(cls: str, ones: Sequence[decision.Detection]) -> Sequence[str]:
            said = self._classifier(image, cls, ones)
            colors.extend(
                {"class": cls, "box": one.to_json()[:4], "color": color}
                for one, color in zip(ones, said, strict=True)
            )
            return said

        selected = decision.select(found, doc.group, self._options)
        verdict = decision.judge(doc.target, selected, colors_of, self._options)
        boxes = {cls: [one.to_json() for one in ones] for cls, ones in selected.items()}
        return Judgement(
            float(verdict.correct),
            constraints=tuple({"text": c.text, "ok": not c.kind, "reason": c.reason} for c in verdict.checks),
            failures=tuple(dict.fromkeys(check.kind for check in verdict.failures)),
            details={"reason": verdict.reason, "boxes": boxes},
            raw={"detections": [[one.cls, *one.to_json()] for one in found], "colors": colors},
        )
