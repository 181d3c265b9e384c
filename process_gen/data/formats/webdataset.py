"""Samples of WebDataset tar shards: consecutive members whose names agree up to the first dot.

`000123.json`, `000123.0.png`, `000123.1.png` are one sample with the fields `json`, `0.png`, `1.png`.
Shards are not unpacked: an index holds the offset of each member. It is built once and cached beside them.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from process_gen.common import files
from process_gen.data.errors import BadTrajectory
from process_gen.data.formats.parquet import find
from process_gen.data.formats.places import digest_of
from process_gen.data.formats.rows import Row, Rows

INDEX = ".index.npz"
TEXTS = ("txt", "text", "caption", "cls")
"""Last extensions of members that are text."""


class TarRows(Rows):
    """The samples of all shards, in the order of their names. Fields are named by extension."""

    what = "samples"

    def __init__(self, path: str | os.PathLike[str]):
        """Opens a shard, a folder, or a pattern such as `set/train-*.tar`; raises as `find`.

        Raises BadTrajectory: a shard is no tar file, or cut off.
        """
        self.place, self._names = find(path, "*.tar")
        self.title = os.fspath(path)
        digest = digest_of(self.place, self._names)
        self.name = f"{len(self._names)} tar shards of SHA-256 {digest[:16]}"
        self._index = self._kept(digest) or self._made(digest)
        self._kinds, self._keys = (
            self._index[name].tobytes().decode().split("\0") for name in ("kinds", "keys")
        )

    def __len__(self) -> int:
        return len(self._index["first"]) - 1

    def __getitem__(self, index: int) -> Row:
        return _Sample(self, index)

    def where(self, index: int) -> str:
        shard = self._names[self._index["shard"][self._index["first"][index]]]
        return f"{self.place.path(shard)}, key {self._keys[index]}"

    def uid(self, index: int) -> str:
        return f"{self.place.name}:{self._keys[index]}"

    def open(self, index: int, path: str) -> BinaryIO:
        """A member of the sample, by its extension or its name."""
        members = self.members(index)
        if path not in members:
            path = _split(path)[1]
        if path not in members:
            raise FileNotFoundError(f"the sample has no member {path!r}")
        return io.BytesIO(self.member(members[path]))

    def members(self, index: int) -> dict[str, int]:
        """The members of a sample by extension."""
        first, end = self._index["first"][index : index + 2]
        return {self._kinds[self._index["kind"][i]]: i for i in range(first, end)}

    def member(self, number: int) -> bytes:
        """The content of a member; raises OSError."""
        shard, start, size = (int(self._index[name][number]) for name in ("shard", "start", "size"))
        return self.place.read(self._names[shard], start, size)

    def _kept(self, digest: str) -> dict[str, np.ndarray] | None:
        try:
            with self.place.open(INDEX) as file, np.load(file) as found:
                index = {name: found[name] for name in found.files}
            return index if index["digest"].tobytes().decode() == digest else None
        except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile):
            return None

    def _made(self, digest: str) -> dict[str, np.ndarray]:
        """Builds the index from all shards, and caches it beside them where the folder can be written."""
        logging.info("looking through %d shards of %s once", len(self._names), self.title)
        members: list[tuple[int, ...]] = []
        first: list[int] = []
        kinds: dict[str, int] = {}
        keys: list[str] = []
        for shard, name in enumerate(self._names):
            last = None
            for member, start, size in self._walk(name):
                key, kind = _split(member)
                if key != last:
                    last = key
                    keys.append(key)
                    first.append(len(members))
                members.append((shard, start, size, kinds.setdefault(kind, len(kinds))))
        columns = np.asarray(members, np.int64).reshape(-1, 4).T
        index = dict(zip(("shard", "start", "size", "kind"), columns, strict=True))
        index["first"] = np.asarray([*first, len(members)], np.int64)
        texts = {"kinds": "\0".join(kinds), "keys": "\0".join(keys), "digest": digest}
        index |= {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
        file = io.BytesIO()
        np.savez(file, **index)
        self.place.keep(INDEX, file.getvalue(), "indexes all shards again")
        return index

    def _walk(self, name: str) -> Iterator[tuple[str, int, int]]:
        """Yields name, offset and length in bytes of each file in a shard; hidden ones are left out."""
        length, _ = self.place.stamp(name)
        try:
            with self.place.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not member.isfile() or posixpath.basename(member.name).startswith((".", "__")):
                        continue
                    if member.offset_data + member.size > length:
                        raise tarfile.ReadError(f"cut off in {member.name}")
                    yield member.name, member.offset_data, member.size
                if tar.offset >= length:
                    logging.warning("%s has no end mark: it may be cut off", self.place.path(name))
        except (tarfile.TarError, UnicodeDecodeError) as error:
            raise BadTrajectory(
                f"{self.place.path(name)} cannot be read as an uncompressed tar file: {error}"
            ) from None


class _Sample(Mapping):
    """The fields of a sample, read when they are asked for."""

    def __init__(self, rows: TarRows, index: int):
        self._rows, self._index = rows, index
        self._members = rows.members(index)

    def __getitem__(self, kind: str) -> Any:
        content = self._rows.member(self._members[kind])
        last = kind.rpartition(".")[2].lower()
        try:
            if last == "json":
                return files.from_json(content)
            return content.decode("utf-8") if last in TEXTS else content
        except ValueError as error:
            where = self._rows.where(self._index)
            what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "is not JSON"
            raise BadTrajectory(f"{where}: {kind} {what}: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def _split(name: str) -> tuple[str, str]:
    """Splits a member's name at the first dot after its folders, into key and extension."""
    folder, last = posixpath.split(name)
    key, _, kind = last.partition(".")
    return posixpath.join(folder, key), kind
