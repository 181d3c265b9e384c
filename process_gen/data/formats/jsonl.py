"""Rows in a JSON listing: one object per line, or one list of objects, with image files beside it."""

from __future__ import annotations

import codecs
import hashlib
import os
from typing import Any, BinaryIO

from process_gen.common import files
from process_gen.data.errors import BadTrajectory
from process_gen.data.formats.places import place_of, split_path
from process_gen.data.formats.rows import Row

LISTING = "trajectories.jsonl"


class JsonRows:
    """The lines of `trajectories.jsonl` in a folder, or of a `.jsonl` or `.json` file; see `Rows`."""

    what = "lines"

    def __init__(self, path: str | os.PathLike[str]):
        """Reads the listing.

        Raises:
          FileNotFoundError: there is none.
          BadTrajectory: a `.json` file that is no list of objects.
        """
        alone = os.fspath(path).endswith((".json", ".jsonl"))
        self.place, self._listing = split_path(path) if alone else (place_of(path), LISTING)
        listing = self.place.path(self._listing)
        if not self.place.exists(self._listing):
            raise FileNotFoundError(f"{listing} does not exist: a folder of trajectories needs it")
        with self.place.open(self._listing) as file:
            content = file.read()
        self.title = str(listing)
        self.name = f"folder with {self._listing} of SHA-256 {hashlib.sha256(content).hexdigest()[:16]}"
        content = content.removeprefix(codecs.BOM_UTF8)
        self._objects: list[Any] | None = None
        if self._listing.endswith(".json") and content.lstrip().startswith(b"["):
            self._objects = self._list(content)
            self._lines: list[tuple[int, bytes]] = [(number + 1, b"") for number in range(len(self._objects))]
            return
        lines = enumerate(content.splitlines(), start=1)
        self._lines = [(number, line) for number, line in lines if line.strip()]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Row:
        if self._objects is not None:
            return self._object(index, self._objects[index])
        try:
            return self._object(index, files.from_json(self._lines[index][1]))
        except UnicodeDecodeError as error:
            raise BadTrajectory(f"{self.where(index)}: line is not UTF-8: {error.reason}") from None
        except ValueError as error:
            if isinstance(error, BadTrajectory):
                raise
            raise BadTrajectory(f"{self.where(index)}: line is not JSON: {error}") from None

    def text(self, index: int) -> Row:
        return self[index]

    def where(self, index: int) -> str:
        return f"{self.title}, {'line' if self._objects is None else 'record'} {self._lines[index][0]}"

    def uid(self, index: int) -> str:
        return f"{self.place.name}:{self._lines[index][0]}"

    def open(self, index: int, path: str) -> BinaryIO:
        del index
        return self.place.open(path)

    def _object(self, index: int, value: Any) -> Row:
        if not isinstance(value, dict):
            raise BadTrajectory(f"{self.where(index)}: line is not a JSON object")
        return value

    def _list(self, content: bytes) -> list[Any]:
        try:
            return files.from_json(content)
        except ValueError as error:
            raise BadTrajectory(f"{self.title} is not JSON: {error}") from None
