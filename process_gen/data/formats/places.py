"""Folders that hold a set: local, or on any file system that fsspec knows (`gs://`, `s3://`, ..).

Paths inside a place are relative and have forward slashes. Local paths need no fsspec.

One digest covers the contents of a set, so that a changed data file is noticed, whatever its length. Reading
hundreds of gigabytes takes minutes: the digests of the files are cached in the folder, with length and time,
and only a file that is new or was written again is read.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from absl import logging

from process_gen.common import files

SIDECAR = ".sha256.json"
THREADS = 8


def escapes(name: str) -> bool:
    """Returns whether a path that a set names leaves the set: it is absolute, or leads out by `..`."""
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


class Place:
    """A local folder. Links in it are followed, wherever they point.

    Attributes:
      root: its absolute path, or the URL as the user wrote it, for messages.
      name: the last part of it.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self._root = pathlib.Path(root).absolute()
        self.root, self.name = str(self._root), self._root.name

    def path(self, name: str) -> Any:
        """Returns the full path of a file in it: a local path, or a URL."""
        return self._root / name

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading, with random access; raises OSError."""
        return self.path(name).open("rb")

    def read(self, name: str, start: int, size: int) -> bytes:
        """Reads `size` bytes of a file from `start` on; raises OSError."""
        with self.open(name) as file:
            file.seek(start)
            return file.read(size)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.path(name).is_file()

    def glob(self, pattern: str) -> list[str]:
        """Returns the files, in all folders below, whose last path parts match `pattern`, sorted."""
        found = (path for path in self._root.rglob(pattern) if path.is_file())
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def stamp(self, name: str) -> tuple[int, str]:
        """Returns a file's size in bytes, and its time or ETag, which a rewrite changes; "" if unknown."""
        found = self.path(name).stat()
        return found.st_size, str(found.st_mtime_ns)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file for writing; it appears, complete, only when the block ends without an error."""
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        with files.whole(self.path(name)) as scratch, open(scratch, "wb") as file:
            yield file
            file.flush()

    def keep(self, name: str, content: bytes, otherwise: str) -> None:
        """Writes a cache file; where that fails, warns that every start does `otherwise` (a verb phrase)."""
        try:
            with self.create(name) as file:
                file.write(content)
        except OSError as error:
            logging.warning("%s cannot be written (%s): every start %s", self.path(name), error, otherwise)

    def kept(self, name: str) -> Any:
        """Returns the value of a JSON cache file; None where there is none that can be read."""
        try:
            with self.open(name) as file:
                return files.from_json(file.read())
        except (OSError, ValueError):
            return None


class RemotePlace(Place):
    """A folder behind a URL."""

    def __init__(self, url: str):
        self._fs = _folder(url)
        self.root = url.rstrip("/")
        self.name = posixpath.basename(self.root)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def open(self, name: str) -> BinaryIO:
        return self._fs.open(name, "rb")

    def read(self, name: str, start: int, size: int) -> bytes:
        return self._fs.cat_file(name, start=start, end=start + size)

    def exists(self, name: str) -> bool:
        return self._fs.isfile(name)

    def glob(self, pattern: str) -> list[str]:
        try:
            found = self._fs.find("")
        except FileNotFoundError:
            return []
        return sorted(path for path in found if pathlib.PurePosixPath(path).match(pattern))

    def stamp(self, name: str) -> tuple[int, str]:
        found = self._fs.info(name)
        said = (found.get(key) for key in ("etag", "ETag", "md5Hash", "mtime", "created", "LastModified"))
        return found["size"], str(next((one for one in said if one), ""))

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            self._fs.makedirs(posixpath.dirname(name), exist_ok=True)
            with self._fs.open(name, "wb") as target:
                shutil.copyfileobj(file, target)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, such as `gs://bucket/set`."""
    return "://" in os.fspath(path)


def place_of(path: str | os.PathLike[str]) -> Place:
    """The folder that a path or a URL names.

    Raises ValueError: fsspec is not installed, or cannot open URLs of that scheme.
    """
    return RemotePlace(os.fspath(path)) if is_remote(path) else Place(path)


def split_path(path: str | os.PathLike[str]) -> tuple[Place, str]:
    """The folder that a path lies in, and its last part, which may be a pattern."""
    text = os.fspath(path).rstrip("/")
    parent, name = posixpath.split(text) if is_remote(text) else os.path.split(os.path.abspath(text))
    return place_of(parent), name


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path or URL names a folder that is there."""
    if not is_remote(path):
        return os.path.isdir(path)
    return _folder(os.fspath(path)).isdir("")


def _folder(url: str) -> Any:
    """The folder of a URL as a file system of fsspec, for paths inside it."""
    try:
        import fsspec
        from fsspec.implementations.dirfs import DirFileSystem

        fs, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{url} cannot be opened ({error}): `pip install process_gen[remote]` has gs:// and s3://"
        ) from None
    root = root.rstrip("/")
    return DirFileSystem(root, fs) if root else fs  # the root of a file system, as of a zip file


# -------------------------------------------------------------------- identity


def digest_of(place: Place, names: Sequence[str]) -> str:
    """Returns the SHA-256, in hexadecimal digits, of the SHA-256 digests of some files in their order.

    Raises OSError: one cannot be read.
    """
    known = place.kept(SIDECAR)
    known = known if isinstance(known, dict) else {}
    stamps = {name: list(place.stamp(name)) for name in names}
    fresh = [name for name in names if not _holds(known.get(name), stamps[name])]
    if fresh:
        logging.info("reading %d files of %s once, to know them by content", len(fresh), place.root)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
            for name, found in zip(fresh, threads.map(lambda name: _sha256(place, name), fresh), strict=True):
                known[name] = [*stamps[name], found]
        content = json.dumps(known, sort_keys=True).encode()
        place.keep(SIDECAR, content, "reads all files")
    return hashlib.sha256("".join(known[name][2] for name in names).encode()).hexdigest()


def _sha256(place: Place, name: str) -> str:
    with place.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(entry: object, stamp: list) -> bool:
    """Returns whether a cached entry is of the file as it is now; never where the stamp says nothing."""
    return isinstance(entry, list) and len(entry) == 3 and bool(stamp[1]) and entry[:2] == stamp
