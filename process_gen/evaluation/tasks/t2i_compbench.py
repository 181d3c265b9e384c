"""T2I-CompBench(++): eight categories; its own tools score each by itself, so nobody judges here.

Prompts are the `*_val.txt` files of its `examples/dataset`. Its tools look for
`samples/{prompt}_{number}.png` in a folder per category, and read the prompt
back from the file name.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

from process_gen.common.names import check_name
from process_gen.evaluation.options import LONGEST_NAME, data_path, read_text
from process_gen.evaluation.tasks.base import Doc, Task, TaskError

CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")


@dataclasses.dataclass(frozen=True)
class T2ICompBench(Task):
    """The task; see the module.

    Attributes:
      data: the folder of `{category}_val.txt` files.
      categories: those to read, joined by `+`; all by default.
    """

    name: ClassVar[str] = "t2i-compbench"
    version: ClassVar[str] = "1"
    images: int = 10
    data: str = ""
    categories: str = "+".join(CATEGORIES)

    def docs(self) -> Sequence[Doc]:
        folder = data_path(self.name, "data", self.data)
        chosen = dict.fromkeys(self.categories.split("+"))
        for category in chosen:
            check_name(category, CATEGORIES, f"category of {self.name}", TaskError)
        return [doc for category in chosen for doc in self._docs(folder, category)]

    def _docs(self, folder: pathlib.Path, category: str) -> Iterator[Doc]:
        path = folder / f"{category}_val.txt"
        for row, line in enumerate(read_text(path).rstrip().split("\n")):
            prompt, where = line.strip(), f"{path}, line {row + 1}"
            if not prompt:
                raise TaskError(f"{where}: empty, and images are numbered by line")
            if strange := [letter for letter in "_/" if letter in prompt]:
                raise TaskError(f"{where}: {strange[0]!r} in a prompt, which is read back from file names")
            doc = Doc(f"{category}-{row:04}", prompt, category, {"row": row})
            if len(self._file_name(doc, self.images - 1).encode()) > LONGEST_NAME:
                raise TaskError(
                    f"{where}: too long for a file name ({LONGEST_NAME} bytes), from which the prompt is read"
                )
            yield doc

    def _file_name(self, doc: Doc, index: int) -> str:
        return f"{doc.input}_{doc.target['row'] * self.images + index:06}.png"

    def place(self, doc: Doc, index: int) -> str | None:
        """In the folder of its category; numbers run over the category, prompt by prompt."""
        return f"{doc.group}/samples/{self._file_name(doc, index)}"
