"""DPG-Bench: long prompts; its own tool asks an mPLUG model, so nobody judges here.

Prompts are the text files of its `prompts` folder. Its tool looks for one file
per prompt that holds four images: top left, top right, bottom left, bottom right.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from PIL import Image

from process_gen.common import files
from process_gen.evaluation.options import data_path, read_text
from process_gen.evaluation.tasks.base import Doc, Task, TaskError


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
        found: dict[str, dict[int, pathlib.Path]] = {}
        for doc, index, path in images:
            found.setdefault(doc.doc_id, {})[index] = path
        for name, tiles in found.items():
            if missing := [index for index in range(self.images) if index not in tiles]:
                raise TaskError(f"{name}: image {missing[0]} of {self.images} is missing")
        root, written = pathlib.Path(folder), []
        root.mkdir(parents=True, exist_ok=True)
        for name, tiles in found.items():
            tiled = _tile([tiles[index] for index in range(self.images)])
            with files.whole(root / f"{name}.png") as scratch, open(scratch, "wb") as file:
                tiled.save(file, "PNG")
            written.append(root / f"{name}.png")
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


def _tile(paths: Sequence[pathlib.Path]) -> Image.Image:
    """Tiles four images two by two, row by row; returns a single one as it is."""
    tiles = []
    for path in paths:
        try:
            with Image.open(path) as image:
                tiles.append(image.convert("RGB"))
        except OSError as error:
            raise TaskError(f"{path}: {error}") from error
    if len(tiles) == 1:
        return tiles[0]
    width, height = tiles[0].size
    for path, tile in zip(paths, tiles, strict=True):
        if tile.size != (width, height):
            raise TaskError(f"{path} is {tile.width} x {tile.height}, {paths[0]} is {width} x {height}")
    tiled = Image.new("RGB", (2 * width, 2 * height))
    for index, tile in enumerate(tiles):
        tiled.paste(tile, (index % 2 * width, index // 2 * height))
    return tiled
