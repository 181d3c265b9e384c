"""Opens a stored set as a source: finds its format, then pairs its rows with a `Form`."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Mapping
from typing import Literal

import tensorflow_datasets as tfds

from process_gen.common.names import check_name
from process_gen.data.formats.columns import COLUMNS
from process_gen.data.formats.jsonl import LISTING, JsonRows
from process_gen.data.formats.parquet import ParquetRows
from process_gen.data.formats.places import is_folder, place_of
from process_gen.data.formats.rows import SHARDED, TRAJECTORIES, Form, Rows
from process_gen.data.formats.webdataset import TarRows
from process_gen.data.importers import IMPORTERS
from process_gen.data.schema import RecordSource
from process_gen.data.stored import StoredSource

FORMATS: dict[str, tuple[Callable[[str | os.PathLike[str]], Rows], Form]] = {
    "folder": (JsonRows, TRAJECTORIES),
    "parquet": (ParquetRows, COLUMNS),
    "webdataset": (TarRows, SHARDED),
}
"""Format -> reader of its rows, and the `Form` of rows that this project wrote."""
RECORDS = "records"
"""The name of the TFDS form (`schema.RecordSource`)."""

_ENDINGS = {".parquet": "parquet", ".tar": "webdataset", ".jsonl": "folder", ".json": "folder"}
_INSIDE = {"dataset_info.json": RECORDS, LISTING: "folder"}


def detect(path: str | os.PathLike[str]) -> str:
    """Returns which of `FORMATS`, or `records`, a path holds, by its ending or the files in it.

    Raises FileNotFoundError: it holds none of them.
    """
    text = os.fspath(path)
    for ending, name in _ENDINGS.items():
        if text.endswith(ending):
            return name
    if is_folder(text):
        place = place_of(text)
        for inside, name in _INSIDE.items():
            if place.exists(inside):
                return name
        for ending in (".parquet", ".tar"):
            if place.glob(f"*{ending}"):
                return _ENDINGS[ending]
    raise FileNotFoundError(
        f"{text} holds no trajectories: neither {LISTING}, nor dataset_info.json, nor .parquet or .tar files"
    )


def open_rows(path: str | os.PathLike[str], form: str = "") -> Rows:
    """Opens the rows of a set in the format `form`, by default that of `detect`; raises as `open_stored`."""
    return FORMATS[check_name(form or detect(path), FORMATS, "form of a data set")][0](path)


def open_stored(
    path: str | os.PathLike[str],
    image_size: tuple[int, int],
    bad: Literal["fail", "skip"] = "fail",
    form: str = "",
    budget: float | None = None,
    fields: Mapping[str, str] | None = None,
) -> StoredSource | RecordSource:
    """Opens the trajectories of a set.

    Args:
      path: a folder, a file, or a pattern of names, local or a URL.
      image_size, bad, budget, fields: as `StoredSource` has them.
      form: one of `FORMATS` or `IMPORTERS`, or `records`; found by `detect` where it is empty.

    Raises FileNotFoundError, BadTrajectory, TooManyBadTrajectories, ValueError: it cannot be opened.
    """
    form = check_name(form or detect(path), (*FORMATS, RECORDS, *IMPORTERS), "form of a data set")
    if form == RECORDS:
        return RecordSource(tfds.builder_from_directory(path))
    if form in FORMATS:
        rows, as_trajectories = FORMATS[form]
    else:
        rows, as_trajectories = pkgutil.resolve_name(f"process_gen.data.importers.{IMPORTERS[form]}")
    return StoredSource(rows(path), as_trajectories, image_size, bad, budget, fields)
