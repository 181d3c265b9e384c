"""Rows of Parquet files: a file, a folder of parts, or a pattern of names.

A column of images is a struct of `bytes` and `path`, as Hugging Face writes it, or bytes. Reading
one row reads its whole row group, so a file that is read in a random order should have small ones
(`writers` makes them of about 1 MiB). A cache of bounded size keeps the groups read last.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import functools
import itertools
import os
import posixpath
import re
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from process_gen.data.errors import BadTrajectory
from process_gen.data.formats import columns
from process_gen.data.formats.places import Place, digest_of, is_folder, place_of, split_path
from process_gen.data.formats.rows import Row, Rows

CACHE_BYTES = 256 << 20
"""Size of the cache of decoded row groups, for each source."""
OPEN_FILES = 64
SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")
"""First words of file names, or names of folders, that tell which split a part belongs to."""
Group = tuple[pa.Table, pa.DataType | None]


class ParquetRows(Rows):
    """The rows of all parts, in the order of their names."""

    what = "rows"

    def __init__(self, path: str | os.PathLike[str], parts: Sequence[str] | None = None):
        """Opens a file, a folder, or a pattern such as `data/train-*.parquet`; raises as `find`.

        With `parts` they are the files of the folder `path`, in this order.

        Raises BadTrajectory: one is no Parquet file.
        """
        self.place, self._names = (place_of(path), list(parts)) if parts else find(path, "*.parquet")
        self.title = os.fspath(path)
        self._begin()
        groups = [
            (part, group, metadata.row_group(group).num_rows)
            for part in range(len(self._names))
            for metadata in [self._file(part).metadata]
            for group in range(metadata.num_row_groups)
        ]
        self._groups = [(part, group) for part, group, count in groups if count]
        self._ends = list(itertools.accumulate(count for *_, count in groups if count))
        self._starts: dict[int, int] = {}
        for (part, _), end in zip(self._groups, [0, *self._ends], strict=False):
            self._starts.setdefault(part, end)
        self.name = f"{len(self._names)} Parquet files of SHA-256 {digest_of(self.place, self._names)[:16]}"

    def _begin(self) -> None:
        """Begins with no open files and an empty cache, as another process does."""
        self._lock = threading.RLock()
        this = weakref.proxy(self)  # a cache that held `self` would keep its files open
        self._file = functools.lru_cache(OPEN_FILES)(lambda part: this._open_part(part))
        self._cache: collections.OrderedDict[tuple[int, int, bool], Group] = collections.OrderedDict()
        self._cached = 0

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        return self._row(index, text=False)

    def text(self, index: int) -> Row:
        return self._row(index, text=True)

    def column(self, name: str) -> list[Any]:
        """Reads all values of one column, and only it; raises BadTrajectory where a part lacks it."""
        found: list[Any] = []
        for part in range(len(self._names)):
            if name not in self._file(part).schema_arrow.names:
                raise BadTrajectory(f"{self.place.path(self._names[part])}: column {name} is missing")
            with self._lock, self._reading(part):
                found += self._file(part).read(columns=[name]).column(0).to_pylist()
        return found

    def sizes(self) -> list[tuple[int, int]]:
        """How many row groups and rows each part has."""
        found = (self._file(part).metadata for part in range(len(self._names)))
        return [(metadata.num_row_groups, metadata.num_rows) for metadata in found]

    def where(self, index: int) -> str:
        part, _ = self._groups[bisect.bisect_right(self._ends, index)]
        return f"{self.place.path(self._names[part])}, row {index - self._starts[part]}"

    def _row(self, index: int, text: bool) -> Row:
        place = bisect.bisect_right(self._ends, index)
        part, group = self._groups[place]
        rows, whole = self._group(part, group, text)
        try:
            return columns.row_of(rows, index - self._ends[place] + len(rows), whole)
        except UnicodeDecodeError as error:
            raise BadTrajectory(f"{self.where(index)}: a text is not UTF-8: {error.reason}") from None

    def _group(self, part: int, group: int, text: bool) -> Group:
        """Returns (row group, None); with `text` (row group without bytes, type of complete rows)."""
        key = (part, group, text)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            with self._reading(part):
                file = self._file(part)
                leaves = columns.text_leaves(file.schema) if text else None
                table = file.read_row_group(group, columns=leaves)
            self._cache[key] = table, pa.struct(list(file.schema_arrow)) if text else None
            self._cached += table.nbytes
            while self._cached > CACHE_BYTES and len(self._cache) > 1:
                _, (oldest, _) = self._cache.popitem(last=False)
                self._cached -= oldest.nbytes
            return self._cache[key]

    def _open_part(self, part: int) -> pq.ParquetFile:
        with self._reading(part):
            return pq.ParquetFile(self.place.open(self._names[part]))

    @contextlib.contextmanager
    def _reading(self, part: int):
        """Raises BadTrajectory, which names the file, for errors of a broken one; keeps I/O errors."""
        try:
            yield
        except (pa.ArrowException, EOFError, UnicodeDecodeError, OSError) as error:
            if getattr(error, "errno", None) is not None:  # an I/O error
                raise
            raise BadTrajectory(
                f"{self.place.path(self._names[part])} cannot be read as Parquet: {error}"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {key: one for key, one in vars(self).items() if key not in ("_lock", "_file", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()


def find(path: str | os.PathLike[str], pattern: str) -> tuple[Place, list[str]]:
    """Returns the folder of a set and the names of its files.

    `path` is a folder, in which they match `pattern`, or a file, or a pattern of its own.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a folder's files are of several splits.
    """
    if is_folder(path):
        place = place_of(path)
        names = place.glob(pattern)
        kinds = {kind for name in names if (kind := _split_of(name))}
        if len(kinds) > 1:
            root, first = os.fspath(path).rstrip("/"), min(kinds)
            inside = any(first in posixpath.dirname(name).lower().split("/") for name in names)
            raise ValueError(
                f"{path} holds several splits ({', '.join(sorted(kinds))}): name the folder of one, or a "
                f"pattern such as --config.data.path='{root}/**/{first}{'/' if inside else ''}{pattern}'"
            )
    else:
        root, _, inner = os.fspath(path).partition("/**/")
        if inner:
            place = place_of(root)
            names = place.glob(inner)
        else:
            place, last = split_path(path)
            names = [last] if place.exists(last) else [name for name in place.glob(last) if "/" not in name]
    if not names:
        raise FileNotFoundError(f"{path} does not exist, or holds no {pattern}")
    return place, names


def _split_of(name: str) -> str | None:
    """Returns the split of a part, as of `train-00000-of-00003.parquet` or `train/0000.parquet`, or None."""
    *folders, last = name.lower().split("/")
    named = (*folders, re.split(r"[-_.]", last)[0])
    return next((one for one in named if one in SPLIT_NAMES), None)
