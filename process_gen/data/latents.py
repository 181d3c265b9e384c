"""Reads and writes latents encoded ahead of time: a folder with one record per trajectory, in source order.

    latents-NNNNN.array_record  of each trajectory a JSON line, then [images, N, V] float16: the images of the
                                turns in order, then the input image; absent images have no entry
    latents.json                what they were made of, and whether all of them are there

The folder belongs to one source and one autoencoder. Every record carries a
checksum of the pixels that it was made of, and one of the image files where the
source has files, so an image that has changed since is noticed. Half precision
rounds by at most 2^-11 of a value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import logging
from array_record.python import array_record_module

from process_gen.common import files
from process_gen.data.errors import BadTrajectory
from process_gen.data.loader import Source, name_of
from process_gen.data.packing import differences
from process_gen.data.preparation import NotPrepared, records_of
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory

INFO = "latents.json"
PART, PARTS = 512, 500
"""Trajectories of a file, and how many files at most; a larger source has larger files."""
DTYPE = np.dtype("<f2")
FORMAT = 3


class LatentsMismatch(ValueError):
    """Latents that belong to another data set, another autoencoder or another layout."""


@dataclasses.dataclass(frozen=True)
class LatentsInfo:
    """What a folder of latents was made of.

    Attributes:
      source, trajectories: name and length of the source.
      image_size: height and width in pixels.
      tokens, values: latent tokens of an image (N), values of a token (V).
      autoencoder: fingerprint of its weights.
      part: trajectories of a file; the last file may have fewer.
    """

    source: str
    trajectories: int
    image_size: tuple[int, int]
    tokens: int
    values: int
    autoencoder: str
    part: int

    @classmethod
    def of(cls, source: Source, layout: Layout, autoencoder: str) -> LatentsInfo:
        size, part = tuple(layout.image_size), max(PART, -(-len(source) // PARTS))
        return cls(
            name_of(source), len(source), size, layout.latents, layout.latent_values, autoencoder, part
        )


def read_info(folder: str | pathlib.Path) -> LatentsInfo:
    """Returns what a complete folder of latents was made of.

    Raises NotPrepared: it is missing, incomplete or unreadable; the message says how to make it.
    """
    try:
        info, complete = _read(folder)
        if complete:
            return info
        reason = f"{INFO} says that they are not complete"
    except NotPrepared as error:
        reason = error
    raise NotPrepared(
        f"{folder} holds no latents ({reason}); make them with `python -m process_gen.prepare --config=...` "
        "and the same config"
    )


def _read(folder: str | pathlib.Path) -> tuple[LatentsInfo, bool]:
    """Returns the content of `latents.json`: info, and `complete`; NotPrepared where it cannot be used."""
    path = pathlib.Path(folder) / INFO
    try:
        fields = files.read_json(path)
        if (version := fields.pop("format")) != FORMAT:
            raise ValueError(f"it has format {version}, this version reads {FORMAT}")
        complete = bool(fields.pop("complete"))
        return LatentsInfo(**fields | {"image_size": tuple(fields["image_size"])}), complete
    except FileNotFoundError:
        reason = "it does not exist" if not path.parent.exists() else f"it has no {INFO}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{INFO} cannot be used: {error}"
    raise NotPrepared(reason)


def is_complete(folder: str | pathlib.Path, info: LatentsInfo) -> bool:
    """Returns whether a folder holds all latents that `info` describes, rather than none or a part of them.

    Raises LatentsMismatch: it holds other latents, or latents without a usable `latents.json`.
    """
    try:
        found, complete = _read(folder)
    except NotPrepared as error:
        if _parts(pathlib.Path(folder)):
            raise LatentsMismatch(f"{folder} holds latents, but {error}; name another folder") from error
        return False
    if different := differences(vars(found), vars(info)):
        raise LatentsMismatch(f"{folder} holds other latents ({different}); name another folder")
    return complete


def images_of(trajectory: Trajectory) -> list[np.ndarray]:
    """Returns the images of a trajectory, [H, W, 3] uint8 each, in record order: turns, then input image."""
    found = [*(turn.image for turn in trajectory.turns), trajectory.prompt_image]
    return [image for image in found if image is not None]


class LatentsWriter:
    """Writes a folder of latents; it is marked complete when the `with` block ends without an error.

    Attributes:
      written: how many trajectories the folder holds, in the order of the source. Complete files of an
        interrupted earlier writer are kept, so the caller goes on at this index.
    """

    def __init__(self, folder: str | pathlib.Path, info: LatentsInfo):
        """Raises LatentsMismatch where the folder holds latents of something else."""
        self.folder, self.info = pathlib.Path(folder), info
        self._part, self._records = contextlib.ExitStack(), None
        is_complete(folder, info)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_info(complete=False)
        self.written = self._whole()

    def _whole(self) -> int:
        """Counts the trajectories of the leading complete files, and deletes all other files of latents."""
        written, keep = 0, set()
        while written < self.info.trajectories:
            path = self._path(written)
            wanted = min(self.info.part, self.info.trajectories - written)
            if records_of(path) != wanted:
                break
            written += wanted
            keep.add(path.name)
        for path in self.folder.glob("latents*.array_record*"):
            if path.name not in keep:
                logging.info("removing %s, which is not whole, or of an earlier version", path)
                path.unlink()
        return written

    def _path(self, index: int) -> pathlib.Path:
        return self.folder / f"latents-{index // self.info.part:05}.array_record"

    def _write_info(self, complete: bool) -> None:
        fields = {"format": FORMAT, "complete": complete, **vars(self.info)}
        files.write_json(self.folder / INFO, fields, indent=1)

    def __enter__(self) -> LatentsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._part.__exit__(kind, *error)
        if kind is None:
            if self.written != self.info.trajectories:
                raise ValueError(f"{self.written} records for {self.info.trajectories} trajectories")
            self._write_info(complete=True)

    def write(self, trajectory: Trajectory, latents: np.ndarray, files_sum: int | None = None) -> None:
        """Appends the record of the next trajectory; its latents are [images, N, V], of `images_of`.

        `files_sum` is the CRC-32 of its image files (`StoredSource.without_pixels`), if the source has files.
        Raises BadTrajectory where the latents are not finite in half precision.
        """
        with np.errstate(over="ignore"):  # reported below
            stored = np.asarray(latents).astype(DTYPE)
        if not np.isfinite(stored).all():
            raise BadTrajectory(f"latents of trajectory {trajectory.uid!r} are not finite in half precision")
        of_files = {} if files_sum is None else {"files": files_sum}
        self._add(
            {"uid": trajectory.uid, "pixels": _checksum(images_of(trajectory)), **of_files}, stored.tobytes()
        )

    def write_bad(self, error: BadTrajectory) -> None:
        """Appends a record without latents, in the place of a trajectory that could not be read."""
        self._add({"bad": str(error)}, b"")

    def _add(self, header: dict[str, Any], data: bytes) -> None:
        if self._records is None:
            scratch = self._part.enter_context(files.whole(self._path(self.written)))
            self._records = array_record_module.ArrayRecordWriter(str(scratch), "group_size:1")
            self._part.callback(self._records.close)
        self._records.write(json.dumps(header).encode() + b"\n" + data)
        self.written += 1
        if self.written % self.info.part == 0:
            self._part.close()
            self._records = None


class LatentsSource:
    """A source whose trajectories carry their latents."""

    def __init__(self, source: Source, folder: str | pathlib.Path, layout: Layout, pixels: bool = True):
        """Opens a folder of latents. Without `pixels`, a source of image files gives blank images, undecoded.

        Raises:
          NotPrepared: the folder holds no latents, or not all of them.
          LatentsMismatch: they were made of another source or for another layout.
        """
        self.source, self.folder, self.info = source, pathlib.Path(folder), read_info(folder)
        self._blank = not pixels and hasattr(source, "without_pixels")
        wanted = LatentsInfo.of(source, layout, self.info.autoencoder)
        if found := differences(vars(self.info), vars(wanted)):
            raise LatentsMismatch(
                f"the latents in {folder} belong to something else: {found}. Make them anew in another "
                "folder, config.data.latents"
            )
        self.own_splits = getattr(source, "own_splits", False)
        if hasattr(source, "rows_of_trajectories"):
            self.rows_of_trajectories = source.rows_of_trajectories
        self.name = f"{wanted.source} with latents of {self.info.autoencoder}"
        parts = _parts(self.folder)
        self._records = grain.sources.ArrayRecordDataSource(parts) if parts else ()
        if len(self._records) != len(source):
            raise NotPrepared(
                f"{self.folder} has {len(self._records)} of {len(source)} records; remove it and "
                "make it anew with `python -m process_gen.prepare --config=...`"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Trajectory:
        """Returns a trajectory with its float16 latents: `image` [turns, N, V], `prompt` [N, V], 0 if absent.

        Raises BadTrajectory: the trajectory or its record is broken, or its images have changed since.
        """
        fields, data = self._stored(index)
        if self._blank and "files" in fields:
            trajectory, found = self.source.without_pixels(index)
            same = fields["files"] == found
        else:
            trajectory = self.source[index]
            same = fields.get("pixels") == _checksum(images_of(trajectory))
        if not same:
            raise BadTrajectory(
                f"trajectory {trajectory.uid!r}: its images are not those that the latents {index} in "
                f"{self.folder} were made of; make them anew"
            )
        places = [*(turn.image for turn in trajectory.turns), trajectory.prompt_image]
        shape = (self.info.tokens, self.info.values)
        try:
            latents = iter(np.frombuffer(data, DTYPE).reshape(-1, *shape))
            *turns, given = (np.zeros(shape, DTYPE) if place is None else next(latents) for place in places)
        except (ValueError, RuntimeError) as error:  # too few of them
            raise self._damaged(index, error) from error
        return dataclasses.replace(trajectory, latents={"image": np.stack(turns), "prompt": given})

    def _stored(self, index: int) -> tuple[dict[str, Any], bytes]:
        """Returns the JSON header of a record, and the bytes of its latents."""
        try:
            header, _, data = self._records[index].partition(b"\n")
            return dict(files.from_json(header)), data
        except (RuntimeError, ValueError, TypeError) as error:
            raise self._damaged(index, error) from error

    def _damaged(self, index: int, error: Exception) -> BadTrajectory:
        return BadTrajectory(f"latents {index} in {self.folder} are damaged: {error}")


def _parts(folder: pathlib.Path) -> list[str]:
    return sorted(map(str, folder.glob("latents-*.array_record")))


def _checksum(images: Sequence[np.ndarray]) -> int:
    total = 0
    for image in images:
        total = zlib.crc32(np.ascontiguousarray(image), total)
    return total
