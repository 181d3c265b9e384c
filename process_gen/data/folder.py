"""Users' own trajectories: a folder with `trajectories.jsonl` and its images.

One JSON object per line, as `trajectory.record` describes it; what the sampler writes
is one. Images are PNG, JPEG or WebP of any size and mode (see `images`), cropped around
their middle to the layout's shape, or to the nearest one of several (`buckets`), and
resized. Paths are relative to the folder and do not leave it by `..`; what is in the folder
may be a link to elsewhere, as in the cache of a hub.
"""

from __future__ import annotations

import codecs
import copy
import errno
import hashlib
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import tqdm
from absl import logging

from process_gen.common import files
from process_gen.common.images import UNREADABLE
from process_gen.data import images
from process_gen.data.encode import BadTrajectory
from process_gen.data.packing import TooManyBadTrajectories, allowance
from process_gen.trajectory.record import Record, RecordError, TurnRecord, trajectory_from_json
from process_gen.trajectory.stages import Trajectory, Turn

LISTING, SHAPES = "trajectories.jsonl", "shapes.json"

_FOR_GOOD = (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
"""What is wrong with a file that is broken (Pillow gives no number) or is not there; the rest may pass."""


def _last_drawn(record: Record) -> TurnRecord:
    return next(turn for turn in reversed(record.turns) if turn.image is not None)


class FolderSource:
    """Random access to the trajectories of a folder; images are read when asked for."""

    def __init__(
        self,
        folder: str | pathlib.Path,
        image_size: tuple[int, int],
        bad: Literal["fail", "skip"] = "fail",
    ):
        """Reads the listing and checks every line of it.

        Args:
          folder: holds `trajectories.jsonl`.
          image_size: height and width that images are brought to.
          bad: `fail` at the first bad line, or `skip` it and name it in the log, as far as
            `allowance` goes. Images are checked when they are read; the loader's policy says
            what happens then.

        Raises:
          FileNotFoundError: there is no listing.
          BadTrajectory: a bad line, named by file, line and field.
          TooManyBadTrajectories: more bad lines than that.
        """
        self.folder, self.image_size = pathlib.Path(folder).absolute(), image_size
        self.listing = self.folder / LISTING
        if not self.listing.is_file():
            raise FileNotFoundError(f"{self.listing} does not exist: a folder of trajectories needs it")
        content = self.listing.read_bytes()
        self._digest = hashlib.sha256(content).hexdigest()
        self.name = f"folder with {LISTING} of SHA-256 {self._digest[:16]}"  # wherever it lies
        self._entries: list[tuple[int, Record]] = []
        self.skipped: list[str] = []
        lines = content.removeprefix(codecs.BOM_UTF8).splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                self._entries.append((number, self._parse(number, line)))
            except BadTrajectory as error:
                if bad == "fail":
                    raise
                self.skipped.append(str(error))
                logging.warning("left out bad trajectory (%d so far): %s", len(self.skipped), error)
        budget = allowance(len(lines))
        if len(self.skipped) > budget * len(lines):
            raise TooManyBadTrajectories(
                f"{len(self.skipped)} of {len(lines)} lines of {self.listing} are bad, the budget allows "
                f"{budget:.2%}; the last one: {self.skipped[-1]}"
            )

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Trajectory:
        """Returns one trajectory with its images.

        Raises:
          BadTrajectory: an image is missing or unreadable; file, line and field are named.
        """
        number, record = self._entries[index]
        given = record.prompt_image
        prompt_image = None if given is None else self._image(number, "image", given)
        turns = (Turn(self._image(number, one.image_field, one.image), **one.fields) for one in record.turns)
        return Trajectory(
            prompt=record.prompt,
            turns=tuple(turns),
            uid=record.uid or f"{self.folder.name}:{number}",
            metadata={**record.metadata, **record.sampled},
            prompt_image=prompt_image,
            instruction=record.instruction,
        )

    def turns(self) -> int:
        """Turns of all trajectories together."""
        return sum(len(record.turns) for _, record in self._entries)

    def shapes(self) -> list[tuple[int, int] | None]:
        """Height and width of the image that each trajectory ends with; None where it cannot be read.

        They are looked up once and kept beside the listing, in `shapes.json`, so that every host and every
        start of a run goes by the same ones, and a million files are opened one time only.

        Raises:
          OSError: an image is there and cannot be had now.
        """
        kept = self.folder / SHAPES
        try:
            known = files.read_json(kept)
            if known["listing"] == self._digest and len(known["shapes"]) == len(self):
                return [shape and (shape[0], shape[1]) for shape in known["shapes"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # looked up anew
        lines = tqdm.tqdm(self._entries, unit=" images", desc="shapes of images", mininterval=1.0)
        found = [self._shape(number, _last_drawn(record)) for number, record in lines]
        try:
            files.write_json(kept, {"listing": self._digest, "shapes": found})
        except OSError as error:
            logging.warning("%s cannot be written (%s): every start looks up all shapes again", kept, error)
        return found

    def _shape(self, number: int, turn: TurnRecord) -> tuple[int, int] | None:
        """Height and width of the image of a turn; None where no start will ever read it."""
        try:
            return images.shape_of(self._path(number, turn.image_field, turn.image))
        except UNREADABLE as error:
            if isinstance(error, OSError) and error.errno not in _FOR_GOOD:
                raise
            return None

    def of_shape(self, image_size: tuple[int, int], indices: Sequence[int]) -> FolderSource:
        """Some of the trajectories, their images brought to another size."""
        part = copy.copy(self)
        part.image_size, part._entries = image_size, [self._entries[index] for index in indices]
        chosen = zlib.crc32(np.asarray(indices, np.int64).tobytes())
        part.name = f"{self.name} at {image_size[0]} x {image_size[1]} (choice {chosen:08x})"
        return part

    def _parse(self, number: int, line: bytes) -> Record:
        """Returns the checked record of one line."""
        try:
            record = trajectory_from_json(files.from_json(line))
        except RecordError as error:
            raise self._bad(number, str(error)) from None
        except UnicodeDecodeError as error:
            raise self._bad(number, f"line is not UTF-8: {error.reason}") from None
        except ValueError as error:
            raise self._bad(number, f"line is not JSON: {error}") from None
        if record.prompt_image is not None:
            self._path(number, "image", record.prompt_image)
        for turn in record.turns:
            if turn.image is not None:
                self._path(number, turn.image_field, turn.image)
        return record

    def _path(self, number: int, field: str, name: str) -> pathlib.Path:
        """Returns the file that `name` points to, inside the folder."""
        if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
            raise self._bad(number, f"{field} leaves the folder: {name!r}")
        return self.folder / name

    def _image(self, number: int, field: str, name: str | None) -> np.ndarray | None:
        if name is None:
            return None
        path = self._path(number, field, name)
        try:
            return images.read_image(path, self.image_size)
        except FileNotFoundError:
            raise self._bad(number, f"{field} does not exist: {name!r}") from None
        except UNREADABLE as error:
            raise self._bad(number, f"{field} is no readable PNG, JPEG or WebP: {name!r} ({error})") from None

    def _bad(self, number: int, problem: str) -> BadTrajectory:
        return BadTrajectory(f"{self.listing}, line {number}: {problem}")
