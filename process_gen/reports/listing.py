"""A folder of sampled trajectories that is appended to while they are drawn, and can be resumed.

OUT/trajectories.jsonl       a line for each, written after its images; `data.source=folder` reads it
OUT/settings.json            the sampling settings
OUT/images/<id>_<step>_<sketch|refined>.png, <id>_input.png
OUT/strips/<id>.png          one picture per trajectory

Text is kept exactly as the model wrote it. An interrupted run resumes where the listing ends: what it has
is not drawn again. Of several hosts, each appends to a part of its own (`trajectories.1.jsonl`); host 0
moves the parts into the listing (`Listing.gather`).
"""

from __future__ import annotations

import contextlib
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

Key = tuple[str, str, int, str]
"""What identifies a sample: prompt, instruction, seed, SHA-256 of the prompt's image ("" for none)."""


def key_of(prompt: str, instruction: str, seed: int, image: np.ndarray | None) -> Key:
    """The key of a sample; `image` is that of its prompt, as the model gets it, [height, width, 3] uint8."""
    return prompt, instruction, seed, "" if image is None else hashlib.sha256(image.tobytes()).hexdigest()


def save_trajectory(
    folder: str | os.PathLike[str], trajectory: SampledTrajectory, strips: bool = True
) -> bytes:
    """Writes the images and the strip of a trajectory into `folder`, named by its uid; returns its JSON line.

    Steps are numbered from 1. The corrections of a step are `refined`, `refined2`, `refined3`, ... The line
    has the SHA-256 of the image file of each turn.

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
    """Reads and extends the samples in a folder.

    Args:
      folder: made if it does not exist, unless `read_only`.
      settings: sampling settings, JSON-like; those in the folder must be equal.
      resume: False empties an existing listing, unless `read_only`.
      host: (index of this host, number of hosts). Host 0 must build its `Listing` before the others do.
      strips: whether to draw a strip of each trajectory.
      read_only: reads an existing listing, without parts that are not gathered yet; writes nothing.

    Attributes:
      done: keys of the listed samples.
      uids: their uids.
      judged, right: how many have a verdict, and how many of those are right.

    Raises:
      ReportError: the folder cannot be written, has no samples (`read_only`), or holds a damaged listing or
        one with other settings.
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
        if (resume or read_only) and self.path.exists():
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
        """Writes the images of a trajectory, then appends its line.

        Args:
          trajectory: keeps its uid if `number` is None.
          number: index of its prompt, which makes its uid. With H hosts, host h must have number % H == h.
        """
        (host, hosts), uid = self._host, trajectory.uid if number is None else f"{number:04d}"
        # The uid is taken: search on in numbers that no other host uses, those with number % hosts == host.
        if number is not None and uid in self.uids:
            free = itertools.count(len(self) - len(self) % hosts + host, hosts)
            uid = next(name for n in free if (name := f"{n:04d}") not in self.uids)
        _append(
            self._own, save_trajectory(self.folder, dataclasses.replace(trajectory, uid=uid), self._strips)
        )
        t = trajectory
        self._count(uid, key_of(t.prompt, t.instruction, t.seed, t.prompt_image), t.verdict)

    def records(self) -> Iterator[Record]:
        """Yields the listed samples, without their images."""
        return (record for _, record in _read(self.path))

    def sampled(self, record: Record, side: int | None = None) -> SampledTrajectory:
        """Reads a listed sample with its images, shrunk to at most `side` pixels a side if that is given."""
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
        """Moves the parts of all hosts, and those left by an interrupted run, into the listing."""
        parts = self._parts()
        listed = {record.uid for _, record in _read(self.path)} if parts else set()
        for part in parts:
            cut_unfinished(part)
            new = {record.uid: (line, record) for line, record in _read(part) if record.uid not in listed}
            _append(self.path, b"".join(line for line, _ in new.values()))
            self._count_records(record for _, record in new.values())
            listed |= new.keys()
            part.unlink()

    def first(self, count: int) -> list[SampledTrajectory]:
        """The first `count` samples in order of their uids, with images of at most 256 pixels a side."""
        found = heapq.nsmallest(count, self.records(), key=lambda record: record.uid)
        return [self.sampled(record, 256) for record in found]

    def _parts(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("trajectories.*.jsonl"))

    def _count_records(self, records: Iterable[Record]) -> None:
        for record in records:
            given = None if record.prompt_image is None else self._image(record.prompt_image, None)
            key = key_of(record.prompt, record.instruction, record.sampled.get("seed", 0), given)
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
        there = None
        with contextlib.suppress(OSError, ValueError):
            there = read_json(self.folder / SETTINGS)
        if not isinstance(there, dict):
            raise files.ReportError(
                f"{self.path} was not written by such a run (no settings in {SETTINGS}): {otherwise}"
            )
        there.pop("images", None)  # of earlier versions; they are part of the keys now
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
    """Yields the lines of a listing with their records; raises ReportError at a line that cannot be read."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # still being written, or cut off
            try:
                yield line, trajectory_from_json(from_json(line))
            except (RecordError, ValueError) as error:
                raise files.ReportError(f"{path}:{number}: {error}") from error


def _append(path: pathlib.Path, content: bytes) -> None:
    """Appends whole lines to a file and syncs it to disk; raises ReportError where that fails."""
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise files.ReportError(f"cannot write {str(path)!r}: {error.strerror}") from error


def cut_unfinished(path: pathlib.Path) -> None:
    """Truncates a last line without a line feed, which an interrupted run left."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
        file.truncate(end)
