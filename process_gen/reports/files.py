"""Writes the files of a report: atomically, inside its folder, with errors for the user."""

from __future__ import annotations

import os
import pathlib
import tempfile

from process_gen.common.buckets import check_on_disk
from process_gen.common.files import whole


class ReportError(OSError):
    """A report's folder or file cannot be read or written; the message is fit for a user."""


def check_writable(outdir: str | os.PathLike[str]) -> pathlib.Path:
    """Makes the folder if needed, and checks that files can be written there, before any work is done.

    Raises ReportError.
    """
    folder = pathlib.Path(outdir)
    try:
        check_on_disk(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ReportError(f"cannot write to the output folder {str(folder)!r}: {why}") from error
    return folder


def inside(folder: str | os.PathLike[str], relative: str) -> pathlib.Path:
    """The path `relative` in `folder`; raises ReportError where it leads out of it."""
    root = pathlib.Path(folder).resolve()
    portable = relative.replace("\\", "/")
    try:
        path = (root / portable).resolve()
    except (OSError, ValueError) as error:
        raise ReportError(f"{relative!r} is not a path: {error}") from error
    if pathlib.PurePosixPath(portable).is_absolute() or not path.is_relative_to(root) or path == root:
        raise ReportError(f"{relative!r} leads out of {str(root)!r}")
    return path


def write_bytes(path: str | os.PathLike[str], content: bytes) -> pathlib.Path:
    """Writes a file atomically: readers see the old one until the new one is complete. Raises ReportError."""
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        raise ReportError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    return path
