"""Addresses of Google Cloud Storage, `gs://bucket/folder`, which `epath.Path` opens like folders.

They are opened with gcsfs (`pip install process_gen[remote]`), not with TensorFlow, and listings are not
cached: other hosts write there, and TensorStore does.
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Iterator

from etils import epath

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of a bucket, or of something in one."""
    return os.fspath(path).startswith("gs://")


def check_on_disk(folder: str | os.PathLike[str]) -> None:
    """Raises OSError for an address (also one that pathlib has made a path) where a folder is needed."""
    if _ADDRESS.match(text := os.fspath(folder)):
        raise OSError(
            f"{text!r} is an address, and this has to be a folder of a file system: only the workdir of a "
            "training, data and published weights may be in a bucket"
        )


@functools.cache
def connect() -> None:
    """Prepares `epath.Path` for buckets; OSError without gcsfs."""
    try:
        import fsspec
        import gcsfs
    except ImportError as error:
        raise OSError(f"gs:// cannot be opened ({error}): pip install process_gen[remote]") from None
    for protocol in gcsfs.GCSFileSystem.protocol:
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False


def files_below(path: epath.Path) -> Iterator[epath.Path]:
    """Yields the path, if it is a file, or all files in the folder and below."""
    if path.is_dir():
        for below in path.iterdir():
            yield from files_below(below)
    else:
        yield path


def fetch(path: epath.Path, target: pathlib.Path) -> list[pathlib.Path]:
    """Copies a file or a folder, with all below, to `target`; returns the files written."""
    written = []
    for file in files_below(path):
        copy = target / file.relative_to(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
        written.append(copy)
    return written
