"""A folder of samples that grows while they are drawn: one trajectory after the other, kept for good.

OUT/trajectories.jsonl       a line for each, once its images are written; what `data.source=folder` reads
OUT/settings.json            how they were drawn
OUT/images/<id>_<step>_<sketch|refined>.png, <id>_input.png
OUT/strips/<id>.png          one picture per trajectory

Text is kept exactly as the model wrote it. A run that was cut off goes on where the listing ends: what
is in it is not drawn again. Several hosts write a part each (`trajectories.1.jsonl`), which the first
one gathers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from process_gen.common.files import from_json, read_json
from process_gen.common.images import UNREADABLE
from process_gen.reports import files, images, overview, strip
from process_gen.trajectory.record import (
    Record,
    RecordError,
    to_json,
    trajectory_from_json,
    trajectory_to_json,
)
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Mode, Turn

NAME, SETTINGS = "trajectories.jsonl", "settings.json"

Key = tuple[str, str, int]
"""What tells one sample from another: both texts of its prompt, and the seed."""


def save_trajectory(
    folder: str | os.PathLike[str], trajectory: SampledTrajectory, strips: bool = True
) -> bytes:
    """Writes the images and the strip of a trajectory into `folder`, named by its uid; returns its line.

    Steps count from 1, and so do the corrections of a step after the first: `refined2`. The line holds the
    SHA-256 of the image of each turn.

    Raises:
      ReportError: a file cannot be written.
    """

    def save(relative: str, image: np.ndarray | Image.Image) -> str:
        content = images.png(image)
        files.write_bytes(files.inside(folder, relative), content)
        sums[relative] = hashlib.sha256(content).hexdigest()
        return relative

    sums: dict[str, str] = {}
    uid, given, turns = trajectory.uid, None, []
    if trajectory.prompt_image is not None:
        given = save(f"images/{uid}_input.png", trajectory.prompt_image)
    for number, step in enumerate(trajectory.steps, 1):
        turns.append(save(f"images/{uid}_{number}_sketch.png", step.sketch))
        for i, turn in enumerate(step.refines, 1):
            turns.append(save(f"images/{uid}_{number}_refined{'' if i == 1 else i}.png", turn.image))
    if strips:
        verdict = overview.verdict_line(trajectory.verdict) if trajectory.verdict else None
        save(f"strips/{uid}.png", strip.strip(trajectory, verdict))
    found = trajectory_to_json(trajectory, turns, given)
    for turn in found["turns"]:
        turn["sha256"] = sums[turn["image"]]
    return json.dumps(found, allow_nan=False).encode() + b"\n"


class Listing:
    """Samples on disk, and room for more.

    Args:
      folder: made if it does not exist.
      settings: how the samples are drawn, JSON-like.
      resume: False forgets what is listed there.
      host: which of how many hosts this is. The first one has to be through before the others begin.
      strips: whether a picture of each trajectory is drawn.
      read_only: nothing on disk is changed; what other hosts have not handed over yet is not seen.

    Attributes:
      done: the samples that are listed.
      uids: their names.
      right, judged: how many of them have a verdict, and are right by it.

    Raises:
      ReportError: the folder cannot be written, or what is in it was drawn otherwise or is broken.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        resume: bool = True,
        host: tuple[int, int] = (0, 1),
        strips: bool = True,
        read_only: bool = False,
    ):
        self.folder = pathlib.Path(folder) if read_only else files.check_writable(folder)
        self.path, self._settings, self._host = self.folder / NAME, to_json(dict(settings)), host
        self._strips = strips
        self._own = self.path if host[1] == 1 else self.path.with_suffix(f".{host[0]}.jsonl")
        self.done: set[Key] = set()
        self.uids: set[str] = set()
        self.right = self.judged = 0
        if read_only and not self.path.exists():
            raise files.ReportError(f"{str(self.folder)!r} holds no samples")
        if resume and self.path.exists():
            self._check_settings()
            if host[0] == 0 and not read_only:
                cut_unfinished(self.path)
            self._count_records(record for _, record in _read(self.path))
        else:
            files.write_bytes(self.path, b"")
            for part in self._parts():
                part.unlink()
        if host[0] == 0 and not read_only:
            self.gather()
            files.write_bytes(self.folder / SETTINGS, json.dumps(self._settings, indent=1).encode())

    def __len__(self) -> int:
        return len(self.uids)

    def add(self, trajectory: SampledTrajectory, number: int | None = None) -> None:
        """Writes a trajectory, images first, named by the number of its prompt, or as it is named already.

        Of H hosts, number h has the prompts whose number leaves h when divided by H.
        """
        (host, hosts), uid = self._host, trajectory.uid if number is None else f"{number:04d}"
        # Of the other numbers each host has its own, as of those of prompts.
        if number is not None and uid in self.uids:
            free = itertools.count(len(self) - len(self) % hosts + host, hosts)
            uid = next(name for n in free if (name := f"{n:04d}") not in self.uids)
        _append(
            self._own, save_trajectory(self.folder, dataclasses.replace(trajectory, uid=uid), self._strips)
        )
        self._count(uid, (trajectory.prompt, trajectory.instruction, trajectory.seed), trajectory.verdict)

    def records(self) -> Iterator[Record]:
        """What is listed, one after the other."""
        return (record for _, record in _read(self.path))

    def sampled(self, record: Record, side: int | None = None) -> SampledTrajectory:
        """A listed sample with its images, as they are or of at most `side` pixels a side."""
        given = record.prompt_image
        return SampledTrajectory(
            prompt=record.prompt,
            turns=tuple(Turn(self._image(turn.image, side), **turn.fields) for turn in record.turns),
            uid=record.uid,
            metadata=record.metadata,
            prompt_image=None if given is None else self._image(given, side),
            instruction=record.instruction,
            **{**record.sampled, "mode": Mode(record.sampled.get("mode", Mode.PROCESS))},
        )

    def gather(self) -> None:
        """Takes the parts of other hosts, or of a run that was cut off, into the listing."""
        parts = self._parts()
        listed = {record.uid for _, record in _read(self.path)} if parts else set()
        for part in parts:
            cut_unfinished(part)
            new = {record.uid: (line, record) for line, record in _read(part) if record.uid not in listed}
            _append(self.path, b"".join(line for line, _ in new.values()))
            self._count_records(record for _, record in new.values())
            listed |= new.keys()
            part.unlink()

    def first(self, count: int, side: int = 256) -> list[SampledTrajectory]:
        """The first samples by name, with images of at most `side` pixels a side."""
        found = heapq.nsmallest(count, self.records(), key=lambda record: record.uid)
        return [self.sampled(record, side) for record in found]

    def _parts(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("trajectories.*.jsonl"))

    def _count_records(self, records: Iterable[Record]) -> None:
        for record in records:
            key = (record.prompt, record.instruction, record.sampled.get("seed", 0))
            self._count(record.uid, key, record.sampled.get("verdict"))

    def _count(self, uid: str, key: Key, verdict: Mapping[str, Any] | None) -> None:
        """Counts a sample that is listed, unless it is counted already."""
        if uid not in self.uids:
            self.uids.add(uid)
            self.done.add(key)
            self.judged += verdict is not None
            self.right += bool(verdict and verdict.get("ok"))

    def _check_settings(self) -> None:
        otherwise = "choose another folder, or start over (--noresume)"
        try:
            there = read_json(self.folder / SETTINGS)
        except (OSError, ValueError):
            raise files.ReportError(
                f"{self.path} was not written by such a run ({SETTINGS} is missing): {otherwise}"
            ) from None
        for name in sorted({*there, *self._settings}):
            old, new = there.get(name), self._settings.get(name)
            if old != new:
                raise files.ReportError(
                    f"the samples in {str(self.folder)!r} were drawn with {name} {old!r}, not {new!r}: "
                    f"{otherwise}"
                )

    def _image(self, relative: str, side: int | None) -> np.ndarray:
        try:
            with Image.open(files.inside(self.folder, relative)) as picture:
                picture = picture.convert("RGB")
                if side is not None:
                    picture.thumbnail((side, side))
                return np.asarray(picture)
        except UNREADABLE as error:
            raise files.ReportError(f"cannot read {relative!r} of {self.path}: {error}") from error


def _read(path: pathlib.Path) -> Iterator[tuple[bytes, Record]]:
    """The lines of a listing, and what they say."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # it is being written, or never was finished
            try:
                yield line, trajectory_from_json(from_json(line))
            except (RecordError, ValueError) as error:
                raise files.ReportError(f"{path}:{number}: {error}") from error


def _append(path: pathlib.Path, content: bytes) -> None:
    """Writes whole lines at the end of a file, for good; raises ReportError where that fails."""
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise files.ReportError(f"cannot write {str(path)!r}: {error.strerror}") from error


def cut_unfinished(path: pathlib.Path) -> None:
    """Cuts off a last line that was never finished."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
        file.truncate(end)
