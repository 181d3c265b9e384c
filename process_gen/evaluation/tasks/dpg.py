"""DPG-Bench: long prompts; its own tool asks an mPLUG model, so nobody judges here.

Prompts are the text files of its `prompts` folder. Its tool looks for one file
per prompt that holds four images: top left, top right, bottom left, bottom right.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from process_gen.common.images import png
from process_gen.evaluation.options import data_path, read_image, read_text
from process_gen.evaluation.tasks.base import Doc, Task, TaskError
from process_gen.reports import files


@dataclasses.dataclass(frozen=True)
class Dpg(Task):
    """The task; see the module.

    Attributes:
      data: the folder of prompts.
      images: of each prompt: four, or one that is not tiled.
    """

    name: ClassVar[str] = "dpg"
    version: ClassVar[str] = "1"
    images: int = 4
    data: str = ""

    def __post_init__(self) -> None:
        if self.images not in (1, 4):
            raise TaskError(
                f"{self.name}.images must be 4, which are tiled two by two, or 1; got {self.images}"
            )

    def docs(self) -> Sequence[Doc]:
        folder = data_path(self.name, "data", self.data)
        paths = sorted(folder.glob("*.txt"))
        if not paths:
            raise TaskError(f"{folder}: no .txt files, of which DPG-Bench has one per prompt")
        return [_doc(path) for path in paths]

    def place(self, doc: Doc, index: int) -> str | None:
        """`{name}.png`, the file of all images of a prompt."""
        return f"{doc.doc_id}.png"

    def lay_out(
        self, folder: str | os.PathLike[str], images: Iterable[tuple[Doc, int, pathlib.Path]]
    ) -> Sequence[pathlib.Path]:
        """Writes one file per prompt, which holds its images two by two; returns the files.

        Raises:
          TaskError: a prompt has not all of its images, or they differ in size.
        """
        found, written = collections.defaultdict(dict), []
        for doc, index, path in images:
            found[doc.doc_id][index] = path
        for name, tiles in found.items():
            if missing := [index for index in range(self.images) if index not in tiles]:
                raise TaskError(f"{name}: image {missing[0]} of {self.images} is missing")
        for name, tiles in found.items():
            tiled = _tile([tiles[index] for index in range(self.images)])
            written.append(files.write_bytes(pathlib.Path(folder, f"{name}.png"), png(tiled)))
        return written

    def read_layout(self, folder: str | os.PathLike[str]) -> Iterator[tuple[Doc, int, pathlib.Path]]:
        """Reads a layout of one image per file; only the benchmark's own tool reads tiled ones.

        Raises:
          TaskError: images are tiled, or there are none.
        """
        if self.images != 1:
            raise TaskError(
                f"{folder}: files of {self.name} hold {self.images} images; its own tool reads them"
            )
        return super().read_layout(folder)


def _doc(path: pathlib.Path) -> Doc:
    text = read_text(path).strip()
    if not text:
        raise TaskError(f"{path} is empty")
    if "." in path.stem:
        raise TaskError(f"{path}: DPG-Bench knows a prompt by its file name up to the first dot; rename it")
    return Doc(path.stem, text, "all")


def _tile(paths: Sequence[pathlib.Path]) -> np.ndarray:
    """Tiles four images two by two, row by row; returns a single one as it is."""
    tiles = [read_image(path) for path in paths]
    sizes = [f"{tile.shape[1]} x {tile.shape[0]}" for tile in tiles]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise TaskError(f"{path} is {size}, {paths[0]} is {sizes[0]}")
    return np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])]) if len(tiles) == 4 else tiles[0]
