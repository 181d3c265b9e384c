"""Writing a report's files: safe names, whole files or none, clear errors."""

from __future__ import annotations

import os
import pathlib
import re
import tempfile

from process_gen.common.files import whole

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


class ReportError(OSError):
    """A report's folder or file cannot be read or written; the message is fit for a user."""


def check_writable(outdir: str | os.PathLike[str]) -> pathlib.Path:
    """Makes the folder if need be and proves that files can be written there.

    Call it before any work. Raises ReportError.
    """
    folder = pathlib.Path(outdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ReportError(f"cannot write to the output folder {str(folder)!r}: {why}") from error
    return folder


def safe_name(name: str) -> str:
    """Returns `name` if it can be part of a file name on any system, else raises ReportError.

    Letters, digits, `.`, `_` and `-`; no separator, no `..`, no name that
    Windows keeps for devices.
    """
    fits = SAFE_NAME.fullmatch(name) and ".." not in name and not name.endswith(".")
    if not fits or RESERVED.fullmatch(name):
        raise ReportError(
            f"{name[:120]!r} cannot be part of a file name: use 1 to 100 letters, digits, '.', '_' and '-'"
        )
    return name


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
    """Writes a whole file or none: readers see the old one until the new one is complete."""
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        raise ReportError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    return path
