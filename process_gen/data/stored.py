"""Reads the trajectories of a stored set: a listing with image files, Parquet, tar shards, an imported set.

`formats` reads the rows of a set and names the place of each; a `Form` makes trajectories of rows.
Images are PNG, JPEG or WebP of any size and mode (see `images`), cropped around their middle to
the layout's aspect ratio, or to the nearest of several (`buckets`), and resized. Paths are
relative to the set and may not leave it by `..`; a file in it may be a link to elsewhere, as
in the cache of a hub.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np
import tqdm
from absl import logging

from process_gen.common import files
from process_gen.common.images import UNREADABLE
from process_gen.common.ranges import is_number
from process_gen.data import images
from process_gen.data.errors import BadTrajectory, check_budget
from process_gen.data.formats.places import escapes
from process_gen.data.formats.rows import TRAJECTORIES, Form, Rows, Unit
from process_gen.trajectory.record import (
    ImageFile,
    Record,
    RecordError,
    TurnRecord,
    trajectory_from_json,
    turn_to_json,
)
from process_gen.trajectory.stages import Trajectory, Turn

SHAPES = "shapes.json"

_LASTING = (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
"""`errno` of errors that lie in the data: a broken image (Pillow sets none), or no such file."""
_WAITS = (1, 2, 5, 15, 60)
"""Seconds to wait before each retry of an image, where the file system is gone for a while."""


class StoredSource:
    """Random access to the trajectories of a stored set; images are read when asked for."""

    def __init__(
        self,
        rows: Rows,
        form: Form,
        image_size: tuple[int, int],
        bad: Literal["fail", "skip"] = "fail",
        budget: float | None = None,
        fields: Mapping[str, str] | None = None,
    ):
        """Finds the trajectories; where `form.cheap` is set, reads and checks them except their images.

        Args:
          image_size: height and width in pixels that images are cropped and resized to.
          bad: whether that check is to `fail` at the first bad trajectory, or to `skip` it and name it in the
            log. The loader's policy decides on those found bad only later, when they are read.
          budget: the share of trajectories that `skip` may leave out; `allowance` by default.
          fields: user-defined fields of turns to read, name -> kind (`Layout.fields`).

        Raises:
          BadTrajectory: the first bad one, named by file, line and field.
          TooManyBadTrajectories: more than `budget` are bad.
        """
        self.rows, self.form, self.image_size = rows, form, tuple(image_size)
        self.fields = dict(fields or {})
        self.name = rows.name if form.name == TRAJECTORIES.name else f"{rows.name} as {form.name}"
        self.skipped: list[str] = []
        self._units = form.units(rows) if form.units else None
        self._order = np.arange(len(rows) if self._units is None else len(self._units))
        self._turns: np.ndarray | None = None
        if form.cheap:
            self._check(bad, budget)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Trajectory:
        """Returns one trajectory with its images.

        Raises:
          BadTrajectory: it is broken, or an image is missing or unreadable; file, line and field are named.
          OSError: the file system still fails after all retries.
        """
        unit = self._unit(self._order[index])
        return self._trajectory(unit, self._record(unit), self._image)

    def without_pixels(self, index: int) -> tuple[Trajectory, int]:
        """Returns a trajectory with blank images, and the CRC-32 of its image files one after the other.

        The input image comes first, then those of the turns. None of these is decoded, so a broken one is not
        found; else it raises as `[index]` does. User-defined image fields are read as there.
        """
        unit, total = self._unit(self._order[index]), 0
        blank = np.zeros((*self.image_size, 3), np.uint8)

        def look(*named: Any) -> np.ndarray:
            nonlocal total
            total = zlib.crc32(self._read(_whole, *named), total)
            return blank

        return self._trajectory(unit, self._record(unit), look), total

    def _trajectory(self, unit: Unit, record: Record, pixels: Callable[..., np.ndarray]) -> Trajectory:
        """Returns the trajectory of a record; `pixels` makes an image of the arguments of `_image`."""
        given, turns = record.prompt_image, []
        prompt_image = None if given is None else pixels(unit, "image", given)
        for turn in record.turns:
            drawn = turn.image is not None
            image = pixels(unit, turn.image_field, turn.image, turn.sha256) if drawn else None
            own = {key: self._own(unit, turn, key, value) for key, value in turn.extra.items()}
            turns.append(Turn(image, **turn.fields, extra=own))
        return Trajectory(
            prompt=record.prompt,
            turns=tuple(turns),
            uid=record.uid or self._uid(unit),
            place=self.rows.where(unit[0][0]),
            metadata={**record.metadata, **record.sampled},
            prompt_image=prompt_image,
            instruction=record.instruction,
        )

    def object(self, index: int) -> dict[str, Any]:
        """Returns one trajectory as an object of `trajectory.record`, each image file as `{"bytes", "path"}`.

        It always has `turns`, also where the set has `steps`. Images are not decoded.

        Raises BadTrajectory, OSError: as `[index]`, except for what only decoding finds.
        """
        unit = self._unit(self._order[index])
        found = self._object(unit, text=False)
        record = self._record(unit, found)
        found = {key: value for key, value in found.items() if key != "steps"}
        found["uid"] = record.uid or self._uid(unit)
        given = found.get("turns") or [_turn_object(turn) for turn in record.turns]
        found["turns"] = [
            self._with_files(unit, f"turns[{place}].", turn, read.sha256)
            for place, (turn, read) in enumerate(zip(given, record.turns, strict=True))
        ]
        return self._with_files(unit, "", found)

    def turns(self) -> int:
        """Returns how many turns all trajectories have together."""
        if self._turns is None:
            self.shapes()
        return int(self._turns.sum())

    def rows_of_trajectories(self) -> np.ndarray:
        """The row that each trajectory begins with, [trajectories]; several may share one."""
        if self._units is None:
            return self._order
        return np.array([self._unit(number)[0][0] for number in self._order], np.int64)

    def shapes(self) -> list[tuple[int, int] | None]:
        """Returns height and width of the last image of each trajectory; None where it cannot be read.

        They are read once and cached beside the set, in `shapes.json`: every host and every start of a run
        then uses the same ones, and a million files are opened only once.

        Raises OSError: an image exists, but the file system cannot give it now.
        """
        place = self.rows.place
        match place.kept(SHAPES):
            case {"of": self.name, "shapes": list(shapes), "turns": list(turns)}:
                read = all(shape is None or isinstance(shape, list) for shape in shapes)
                if read and len(shapes) == len(turns) == len(self):
                    self._turns = np.asarray(turns)
                    if unread := shapes.count(None):
                        logging.warning(
                            "%s: %d images could not be read when %s was made; once they can be, delete it",
                            self.rows.title, unread, SHAPES,
                        )  # fmt: skip
                    return [shape and tuple(shape) for shape in shapes]
        numbers = tqdm.tqdm(self._order, unit=" images", desc="shapes of images", mininterval=1.0)
        found = [self._shape(self._unit(number)) for number in numbers]
        shapes, turns = [shape for shape, _ in found], [count for _, count in found]
        self._turns = np.asarray(turns, np.int64)
        content = json.dumps({"of": self.name, "shapes": shapes, "turns": turns})
        place.keep(SHAPES, content.encode(), "looks up all shapes again")
        return shapes

    def of_shape(self, image_size: tuple[int, int], indices: Sequence[int]) -> StoredSource:
        """Returns the trajectories `indices`, with images cropped and resized to `image_size`."""
        part, chosen = copy.copy(self), np.asarray(indices, np.int64)
        part.image_size, part._order = tuple(image_size), self._order[chosen]
        part._turns = None if self._turns is None else self._turns[chosen]
        part.name = (
            f"{self.name} at {image_size[0]} x {image_size[1]} (choice {zlib.crc32(chosen.tobytes()):08x})"
        )
        return part

    # ------------------------------------------------------------------ records

    def _check(self, bad: str, budget: float | None) -> None:
        """Reads all trajectories without their images; raises for bad ones or leaves them out, by `bad`."""
        kept, turns = [], []
        for number in self._order:
            unit = self._unit(number)
            try:
                turns.append(len(self._record(unit, self._object(unit, text=True)).turns))
                kept.append(number)
            except BadTrajectory as error:
                if bad == "fail":
                    raise
                self.skipped.append(str(error))
                logging.warning("left out bad trajectory (%d so far): %s", len(self.skipped), error)
        if self.skipped:
            what = f"{self.rows.what} of {self.rows.title}"
            check_budget(len(self.skipped), len(self._order), budget, self.skipped[-1], what)
        self._order, self._turns = np.asarray(kept, np.int64), np.asarray(turns, np.int64)

    def _unit(self, number: int) -> Unit:
        return ((int(number),), 0) if self._units is None else self._units[int(number)]

    def _uid(self, unit: Unit) -> str:
        (first, *_), part = unit
        return self.rows.uid(first) + (f"/{part}" if part else "")

    def _object(self, unit: Unit, text: bool) -> dict[str, Any]:
        """Returns the object of a trajectory; with `text` its binary values may be `PRESENT` instead."""
        (indices, part), read = unit, self.rows.text if text else self.rows.__getitem__
        try:
            rows = [read(index) for index in indices]
            return self.form.read(rows, part) if self.form.units else self.form.read(*rows)
        except RecordError as error:
            raise self._bad(unit, str(error)) from None

    def _record(self, unit: Unit, value: Mapping[str, Any] | None = None) -> Record:
        """The checked record of a trajectory."""
        value = self._object(unit, text=False) if value is None else value
        try:
            record = trajectory_from_json(value, self.fields)
        except RecordError as error:
            raise self._bad(unit, str(error)) from None
        named = [("image", record.prompt_image), *((turn.image_field, turn.image) for turn in record.turns)]
        for field, image in named:
            self._check_path(unit, field, image)
        return record

    def _check_path(self, unit: Unit, field: str, path: Any) -> None:
        if isinstance(path, str) and escapes(path):
            raise self._bad(unit, f"{field} leaves the folder: {path!r}")

    def _bad(self, unit: Unit, problem: str) -> BadTrajectory:
        return BadTrajectory(f"{self.rows.where(unit[0][0])}: {problem}")

    # ------------------------------------------------------------------- images

    def _own(self, unit: Unit, turn: TurnRecord, name: str, value: Any) -> Any:
        """Returns a user-defined field: image [H, W, 3] or mask [H, W], resized, or number, flag, None."""
        kind, field = self.fields[name], f"{turn.image_field.rpartition('.')[0]}.{name}"
        if value is None:
            return None
        if kind in ("image", "mask"):
            file = value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value
            if not isinstance(file, (str, bytes)):
                raise self._bad(unit, f"{field} is no image file")
            self._check_path(unit, field, file)
            pixels = self._image(unit, field, file)
            return pixels if kind == "image" else pixels.max(-1)
        if isinstance(value, bool) if kind == "flag" else is_number(value):
            return value
        raise self._bad(unit, f"{field} is no {kind}: {value!r}")

    def _image(self, unit: Unit, field: str, image: ImageFile, sha256: str = "") -> np.ndarray:
        return self._read(lambda file: images.read_image(file, self.image_size), unit, field, image, sha256)

    def _read(
        self, read: Callable[[BinaryIO], Any], unit: Unit, field: str, image: ImageFile, sha256: str = ""
    ) -> Any:
        """Returns `read(file)` of an image file; retries while the file system is gone for a while.

        A host that skipped such an image at once would train on other data than the other hosts.
        """
        for wait in (*_WAITS, 0):
            try:
                return self._read_once(read, unit, field, image, sha256)
            except OSError as error:
                last = error
            if not files.passes(last):
                break
            if wait:
                logging.warning("%s: %s; once more in %d s", _named(image), last, wait)
                time.sleep(wait)
        if last.errno == errno.EIO:  # after all retries: a broken disk
            raise self._bad(unit, f"{field} cannot be read: {_named(image)} ({last})") from last
        raise OSError(last.errno, f"{_named(image)} cannot be read: {last}") from last

    def _read_once(
        self, read: Callable[[BinaryIO], Any], unit: Unit, field: str, image: ImageFile, sha256: str
    ) -> Any:
        """`_read` without retries: BadTrajectory for a broken or missing image, OSError for other errors."""
        try:
            with io.BytesIO(image) if isinstance(image, bytes) else self.rows.open(unit[0][0], image) as file:
                if not sha256:
                    return read(file)
                content = file.read()
            if hashlib.sha256(content).hexdigest() == sha256.lower():
                return read(io.BytesIO(content))
        except BadTrajectory:
            raise
        except FileNotFoundError:
            raise self._bad(unit, f"{field} does not exist: {_named(image)}") from None
        except UNREADABLE as error:
            if isinstance(error, OSError) and error.errno not in _LASTING:
                raise
            what, reason = f"{field} is no readable PNG, JPEG or WebP", str(error).partition(" <_io.")[0]
            raise self._bad(unit, f"{what}: {_named(image)} ({reason})") from None
        raise self._bad(unit, f"{field} is another file than its sha256 says: {_named(image)}")

    def _shape(self, unit: Unit) -> tuple[tuple[int, int] | None, int]:
        """Returns height and width of the last image, None where it is broken or missing; number of turns."""
        try:
            record = self._record(unit)
        except BadTrajectory:
            return None, 1
        turn = next((turn for turn in reversed(record.turns) if turn.image is not None), None)
        if turn is None:
            return None, len(record.turns)
        try:
            return self._read(images.shape_of, unit, turn.image_field, turn.image), len(record.turns)
        except BadTrajectory as error:
            if error.__cause__ is not None:  # of the disk, not of the data: nothing to cache
                raise error.__cause__ from None
            return None, len(record.turns)

    def _with_files(
        self, unit: Unit, where: str, value: Mapping[str, Any], sha256: str = ""
    ) -> dict[str, Any]:
        """Returns an object of a trajectory or a turn with its image files read into `{"bytes", "path"}`."""
        found = dict(value)
        for key, one in value.items():
            own = isinstance(one, str) and self.fields.get(key) in ("image", "mask")
            if key == "image" or own or isinstance(one, Mapping) and set(one) == {"path"}:
                found[key] = self._inline(unit, f"{where}{key}", one, sha256 if key == "image" else "")
            elif isinstance(one, bytes):
                found[key] = {"bytes": one, "path": None}
        return found

    def _inline(self, unit: Unit, field: str, image: Any, sha256: str = "") -> dict[str, Any]:
        """Returns an image as `{"bytes", "path"}`, its file read and its checksum checked."""
        parts = image if isinstance(image, Mapping) else {}
        path = parts.get("path") if parts else image if isinstance(image, str) else None
        content = parts.get("bytes") if parts else image if isinstance(image, bytes) else None
        self._check_path(unit, field, path if content is None else None)
        found = self._read(_whole, unit, field, path if content is None else content, sha256)
        return {"bytes": found, "path": path}


def _turn_object(turn: TurnRecord) -> dict[str, Any]:
    """Returns the object of a turn that was stored in a step (`steps` in the place of `turns`)."""
    blank = None if turn.image is None else np.zeros((1, 1, 3), np.uint8)
    return turn_to_json(Turn(blank, **turn.fields), turn.image) | dict(turn.unknown)


def _whole(file: BinaryIO) -> bytes:
    return file.read()


def _named(image: ImageFile) -> str:
    return repr(image) if isinstance(image, str) else f"{len(image)} bytes"
