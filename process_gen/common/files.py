"""Reads JSON with one type of error for bad content, and writes files atomically."""

from __future__ import annotations

import contextlib
import errno
import json
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

_PASSING = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EREMOTEIO),
)


def passes(error: object) -> bool:
    """Whether it is a transient I/O error, as of a file system or network that is away for a while."""
    return isinstance(error, OSError) and error.errno in _PASSING


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text, with or without a byte-order mark.

    Raises:
      ValueError: no UTF-8, no JSON, or nested too deeply to be read.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: epath.PathLike) -> Any:
    """The value of a JSON file.

    Raises:
      OSError: it cannot be read.
      ValueError: see `from_json`.
    """
    return from_json(epath.Path(path).read_bytes())


@contextlib.contextmanager
def whole(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path to write to, and renames it to `path` when the block ends.

    Readers see the old file until then; if the block raises, the old file stays. Any
    number of processes may write the same file.
    """
    path = epath.Path(path)
    # Only a part of the name: with the suffix, a long one would exceed the limit on file names.
    scratch = path.parent / f"{path.name[:40]}.{secrets.token_hex(4)}.unfinished"
    try:
        yield scratch
        scratch.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def write_json(path: epath.PathLike, value: Any, **options: Any) -> None:
    """Writes a value as JSON, atomically; `options` are those of `json.dumps`."""
    with whole(path) as scratch:
        scratch.write_text(json.dumps(value, **options) + "\n", encoding="utf-8")


def write_json_lines(path: epath.PathLike, values: Iterable[Any], **options: Any) -> None:
    """Writes values as JSON lines, atomically; see `write_json`."""
    with whole(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(value, **options) + "\n" for value in values)
