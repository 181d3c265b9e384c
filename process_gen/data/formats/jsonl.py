"""Rows in a JSON listing: one object per line, or one list of objects, with image files beside it."""

from __future__ import annotations

import codecs
import hashlib
import os

from process_gen.common import files
from process_gen.data.errors import BadTrajectory
from process_gen.data.formats.places import place_of, split_path
from process_gen.data.formats.rows import Row, Rows

LISTING = "trajectories.jsonl"


class JsonRows(Rows):
    """The lines of `trajectories.jsonl` in a folder, or of a `.jsonl` or `.json` file."""

    what = "lines"

    def __init__(self, path: str | os.PathLike[str]):
        """Reads the listing.

        Raises:
          FileNotFoundError: there is none.
          BadTrajectory: a `.json` file that begins as a list is not JSON.
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
        self._list = self._listing.endswith(".json") and content.lstrip().startswith(b"[")
        if self._list:
            try:
                self._rows = [*enumerate(files.from_json(content), start=1)]
            except ValueError as error:
                raise BadTrajectory(f"{self.title} is not JSON: {error}") from None
        else:
            lines = enumerate(content.splitlines(), start=1)
            self._rows = [(number, line) for number, line in lines if line.strip()]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        _, value = self._rows[index]
        try:
            value = value if self._list else files.from_json(value)
        except UnicodeDecodeError as error:
            raise BadTrajectory(f"{self.where(index)}: line is not UTF-8: {error.reason}") from None
        except ValueError as error:
            raise BadTrajectory(f"{self.where(index)}: line is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise BadTrajectory(f"{self.where(index)}: line is not a JSON object")
        return value

    def where(self, index: int) -> str:
        return f"{self.title}, {'record' if self._list else 'line'} {self._rows[index][0]}"

    def uid(self, index: int) -> str:
        return f"{self.place.name}:{self._rows[index][0]}"
