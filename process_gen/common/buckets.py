"""Addresses of Google Cloud Storage, `gs://bucket/folder`, which `epath.Path` opens like folders.

They are opened with gcsfs (`pip install process_gen[remote]`), not with TensorFlow, and listings are not
cached: other hosts write there, and TensorStore does.
"""

from __future__ import annotations

import errno
import functools
import os
import pathlib
import re
from collections.abc import Iterable
from concurrent import futures
from typing import Any

from etils import epath

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")
_REFUSED = re.compile(r"\b40[0134]\b|Forbidden|Anonymous|Invalid|PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND")
_THREADS = 16


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of a bucket, or of something in one."""
    return os.fspath(path).startswith("gs://")


def normal(path: str) -> str:
    """One spelling of an address, without doubled or trailing slashes; other paths as they are."""
    return str(epath.Path(path)) if is_bucket(path) else path


def check_on_disk(folder: str | os.PathLike[str]) -> None:
    """Raises OSError for an address (also one that pathlib has made a path) where a folder is needed."""
    if _ADDRESS.match(text := os.fspath(folder)):
        raise OSError(
            f"{text!r} is an address, and this has to be a folder of a file system: only the workdir of a "
            "training, data and published weights may be in a bucket"
        )


@functools.cache
def connect() -> Any:
    """Prepares `epath.Path` for buckets, and returns gcsfs' file system; OSError without gcsfs."""
    try:
        import fsspec
        import gcsfs
    except ImportError as error:
        raise OSError(f"gs:// cannot be opened ({error}): pip install process_gen[remote]") from None
    for protocol in gcsfs.GCSFileSystem.protocol:
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    return fsspec.filesystem("gs")


def check_access(address: str) -> None:
    """Raises OSError where the account may not look at the bucket, as Orbax does before it deletes a step."""
    bucket = address.removeprefix("gs://").split("/")[0]
    try:
        connect().call("GET", f"b/{bucket}", json_out=True)
    except Exception as error:
        raise failure(
            error,
            f"the bucket {bucket} cannot be looked at; it takes storage.buckets.get, which "
            "roles/storage.legacyBucketReader has, besides roles/storage.objectUser",
        ) from error


def is_of_library(error: Exception) -> bool:
    """Whether gcsfs or Google's client has raised it for what a bucket answered."""
    return type(error).__module__.partition(".")[0] in ("gcsfs", "google")


def failure(error: Exception, what: str) -> OSError:
    """An error of gcsfs, Google's client or TensorStore, which share no base class, as one of this package.

    It counts as transient (`files.passes`) unless the bucket has refused the request.
    """
    found = OSError(f"{what} ({error})")
    if not isinstance(error, FileNotFoundError | PermissionError) and not _REFUSED.search(str(error)):
        found.errno = errno.EREMOTEIO
    return found


def entries(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder, sorted; [] where there is none.

    Raises where a bucket does not answer: to `is_dir` of gcsfs that looks like a folder that is not there.
    """
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Google's console and gcsfuse make an empty object for a folder, which is listed inside it.
    return [path for path in found if not (is_bucket(folder) and path.name == folder.name)]


def names_below(folder: epath.Path) -> list[str]:
    """The files in a folder and below, relative to it, sorted; raises what gcsfs raises."""
    if not is_bucket(folder):
        root = pathlib.Path(folder)  # whose `rglob`, unlike a glob of epath, finds .zarray
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    start = f"{os.fspath(folder).removeprefix('gs://')}/"
    found = connect().find(start)
    return sorted(path.removeprefix(start) for path in found if path.startswith(start) and path[-1] != "/")


def fetch(folder: str, names: Iterable[str], target: pathlib.Path) -> None:
    """Copies objects of a folder to a local one; those that are not there are left out."""

    def one(name: str) -> None:
        try:
            content = connect().cat_file(f"{folder.rstrip('/')}/{name}")
        except FileNotFoundError:
            return
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)

    with futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(one, names))


def move(folder: epath.Path, target: epath.Path) -> None:
    """Renames a folder; in a bucket, all objects of it, one by one."""
    if not is_bucket(folder):
        folder.rename(target)
        return

    def one(name: str) -> None:
        connect().mv(f"{folder}/{name}", f"{target}/{name}")

    with futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(one, names_below(folder)))
