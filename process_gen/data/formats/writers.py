"""Writes trajectories as a listing with image files, Parquet, tar shards, or a TFDS data set.

Image files are copied byte for byte; only TFDS holds pixels, decoded at one size. The SHA-256 of a
turn's image file is written beside it, except in TFDS. A local set appears complete or not at all;
of a set behind a URL that holds for each file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from process_gen.common.images import png
from process_gen.data.errors import BadTrajectory
from process_gen.data.formats import columns
from process_gen.data.formats.jsonl import LISTING
from process_gen.data.formats.places import Place, is_remote, place_of
from process_gen.data.loader import Source
from process_gen.data.schema import features, to_example
from process_gen.trajectory.record import trajectory_to_json
from process_gen.trajectory.stages import Trajectory

GROUP_BYTES = 1 << 20
"""Texts and images of a row group, about: random access to one row reads so much."""
PART_BYTES = SHARD_BYTES = 256 << 20
"""Texts and images of a Parquet file or a tar shard, about."""

_ENDINGS = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"RIFF", ".webp"))

Object = dict[str, Any]
"""A trajectory as an object of `trajectory.record` with `turns`, its images `{"bytes", "path"}`."""


def read_object(source: Source, index: int) -> Object:
    """Returns a trajectory of a source as an object, with its image files unchanged, or pixels as PNG."""
    found = source.object(index) if hasattr(source, "object") else object_of(source[index])
    _check_json(found)
    return found


def objects(
    source: Source,
    on_bad: Callable[[BadTrajectory], None] | None = None,
    read: Callable[[Source, int], Any] = read_object,
) -> Iterator[Any]:
    """Yields `read(source, index)` of all trajectories of a source.

    `on_bad` is called with the error of each one that is left out; by default it is raised.
    """
    for index in range(len(source)):
        try:
            yield read(source, index)
        except BadTrajectory as error:
            if on_bad is None:
                raise
            on_bad(error)


def _check_json(value: Object) -> None:
    """Raises BadTrajectory where a value, image files apart, cannot be written as JSON, as infinity."""
    for holder in (value, *value["turns"]):
        for key, one in holder.items():
            if key == "turns" or isinstance(one, Mapping) and isinstance(one.get("bytes"), bytes):
                continue
            try:
                json.dumps(one, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise BadTrajectory(f"trajectory {value.get('uid')!r}: {key} is not JSON: {error}") from None


def object_of(trajectory: Trajectory) -> Object:
    """A trajectory as an object, its images as PNG; raises ValueError where its metadata are not JSON."""

    def held(image: np.ndarray | None) -> dict[str, Any] | None:
        return None if image is None else {"bytes": png(image), "path": None}

    images = [held(turn.image) for turn in trajectory.turns]
    return trajectory_to_json(trajectory, images, held(trajectory.prompt_image))


# --------------------------------------------------------------------- stored


def record_of(value: Object, number: int) -> tuple[Object, dict[str, bytes]]:
    """Returns the line of an object in the listing of a folder, and file name -> image."""
    return split_images(value, f"images/{number:06d}_")


def write_folder(
    path: str | os.PathLike[str],
    found: Iterable[Object],
    record_of: Callable[[Object, int], tuple[Object, dict[str, bytes]]] = record_of,
) -> int:
    """Writes a folder of `trajectories.jsonl` and images, as `record_of` makes them; returns how many lines.

    Raises:
      FileExistsError: there is a set already.
      OSError: a file cannot be written.
    """
    count = 0
    with new_set(path) as place, place.create(LISTING) as listing:
        for count, one in enumerate(found, start=1):
            record, members = record_of(one, count - 1)
            for name, content in members.items():
                with place.create(name) as file:
                    file.write(content)
            listing.write(_line(record))
    return count


def write_parquet(path: str | os.PathLike[str], found: Iterable[Object]) -> int:
    """Writes `part-00000.parquet` and its like; returns how many trajectories. Raises as `write_folder`."""
    schema, count = columns.schema(), 0
    rows = (columns.to_row(with_sums(one)) for one in found)
    with new_set(path) as place:
        for part, held in enumerate(_runs(rows, PART_BYTES)):
            with place.create(f"part-{part:05d}.parquet") as file, pq.ParquetWriter(file, schema) as writer:
                for group in map(list, _runs(held, GROUP_BYTES)):
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    count += len(group)
    return count


def write_webdataset(path: str | os.PathLike[str], found: Iterable[Object]) -> int:
    """Writes `shard-00000.tar` and its like; returns how many trajectories. Raises as `write_folder`."""
    count = 0
    with new_set(path) as place:
        for shard, held in enumerate(_runs(found, SHARD_BYTES)):
            with (
                place.create(f"shard-{shard:05d}.tar") as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                for one in held:
                    named, members = split_images(one, "")
                    for kind, content in {"json": _line(named), **members}.items():
                        _add(tar, f"{count:09d}.{kind}", content)
                    count += 1
    return count


def write_records(
    path: str | os.PathLike[str],
    found: Iterable[Trajectory],
    image_size: tuple[int, int],
    prompt_image: bool = False,
) -> int:
    """Writes a TFDS data set of pixels at one size to this machine; returns how many trajectories.

    `prompt_image` says whether prompts may hold input images. Raises as `write_folder`, and BadTrajectory for
    one that has no place in it.
    """
    count = 0

    def examples() -> Iterator[tuple[int, Object]]:
        nonlocal count
        for count, one in enumerate(found, start=1):
            yield count - 1, to_example(one, prompt_image=prompt_image)

    if is_remote(path):
        raise ValueError(f"a TFDS data set is written on this machine, and not to {path}")
    with new_set(path) as place, contextlib.redirect_stdout(io.StringIO()):  # TFDS prints of downloads
        built = tfds.dataset_builders.store_as_tfds_dataset(
            name="trajectories",
            version="1.0.0",
            features=features(image_size, prompt_image=prompt_image),
            split_datasets={"train": examples()},
            data_dir=place.root,
            disable_shuffling=True,
            file_format="array_record",
        )
        for file in pathlib.Path(built.data_dir).iterdir():
            file.rename(pathlib.Path(place.root, file.name))
        shutil.rmtree(pathlib.Path(place.root, "trajectories"))
    return count


# ---------------------------------------------------------------------- parts


def split_images(value: Object, prefix: str) -> tuple[Object, dict[str, bytes]]:
    """Replaces the images of an object by file names; returns it, and file name -> content.

    Turns get the `sha256` of their image. Names are made of `prefix`, numbers and a checked ending, not of a
    path in the data, so none can point outside the set.
    """
    members: dict[str, bytes] = {}

    def named(one: Any, key: str, stem: str) -> Any:
        if not isinstance(one, Mapping) or not isinstance(one.get("bytes"), bytes):
            return one
        name = f"{prefix}{stem}{'' if key == 'image' else f'_{len(members)}'}{ending(one)}"
        members[name] = one["bytes"]
        return name if key == "image" else {"path": name}

    whole = with_sums(value)
    found = {key: named(one, key, "input") for key, one in whole.items()}
    found["turns"] = [
        {key: named(one, key, str(place)) for key, one in turn.items()}
        for place, turn in enumerate(whole["turns"])
    ]
    return found, members


def with_sums(value: Object) -> Object:
    """The same with the SHA-256 of each turn's image."""
    turns = [
        {**turn, "sha256": hashlib.sha256(turn["image"]["bytes"]).hexdigest()} if "image" in turn else turn
        for turn in value["turns"]
    ]
    return {**value, "turns": turns}


def ending(image: Mapping[str, Any]) -> str:
    """Returns the ending of an image's file name: by content, else of its path, else `.bin`."""
    for magic, found in _ENDINGS:
        if image["bytes"].startswith(magic):
            return found
    found = os.path.splitext(image.get("path") or "")[1]
    return found if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", found) else ".bin"


def _line(value: Object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a member without time and owner, so that the same content gives the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@contextlib.contextmanager
def new_set(path: str | os.PathLike[str]) -> Iterator[Place]:
    """Yields where to write the files of a set; a local one is moved to `path` when the block ends.

    Raises FileExistsError where something is there already.
    """
    if not is_remote(path):
        path = os.path.realpath(path)  # a link stays a link, and its target is filled
        if os.path.isfile(path):
            raise FileExistsError(f"{path} is a file: choose another folder")
    there = place_of(path)
    if there.glob("*"):
        raise FileExistsError(f"{os.fspath(path)} is not empty: choose another folder")
    if is_remote(path):
        yield there
        return
    scratch = f"{there.root}.{secrets.token_hex(4)}.unfinished"
    try:
        os.makedirs(scratch)
        yield place_of(scratch)
        if os.path.isdir(there.root):
            os.rmdir(there.root)
        os.replace(scratch, there.root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _runs(found: Iterable[Object], most: int) -> Iterator[Iterator[Object]]:
    """Splits objects into runs of about `most` bytes, to be read in turn; the only one may be empty."""
    found = iter(found)
    following = next(found, None)

    def run() -> Iterator[Object]:
        nonlocal following
        total = 0
        while following is not None and total < most:
            one, following = following, next(found, None)
            total += _size(one)
            yield one

    yield run()
    while following is not None:
        yield run()


def _size(value: Any) -> int:
    """Bytes of all texts and images of an object."""
    if isinstance(value, (str, bytes)):
        return len(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return sum(_size(one) for one in inner)
