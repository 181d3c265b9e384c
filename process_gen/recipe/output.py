"""An append-only folder of samples: first the images of a sample are written, then the line that names them.

    OUT/trajectories.jsonl     what `data.source=folder` reads
    OUT/rejected.jsonl         candidates that became no sample, and why
    OUT/settings.json          how they are made
    OUT/images/<ab>/<uid>_<turn>.png

An interrupted run resumes from the two listings: a candidate that is in one of them is not made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from process_gen.common import files
from process_gen.common.images import png
from process_gen.recipe.making import Made
from process_gen.reports.files import ReportError, check_writable
from process_gen.reports.listing import NAME, SETTINGS, cut_unfinished
from process_gen.trajectory.record import to_json, trajectory_to_json
from process_gen.trajectory.stages import Trajectory

REJECTED = "rejected.jsonl"
_SYNC_SECONDS = 2.0  # between two fsyncs: about what a crash of the machine, not of the process, loses


class SampleFolder:
    """A folder of samples that is open for more.

    Args:
      folder: made if it does not exist.
      settings: how samples are made, JSON-like; a folder that was begun with others is refused.
      provenance: `source`, `licence`, `author` of every sample.

    Attributes:
      done: uids of the candidates that have become a sample or were rejected.
      counts: samples of each kind.
      prompts: of the samples that were there at the start, by uid.
      rejected: candidates that became no sample, counted by reason.

    Raises:
      ReportError: the folder cannot be written, or what is in it was made with other settings or is broken.
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: Mapping[str, Any], provenance: Mapping[str, str]
    ):
        self.folder, self._provenance = check_writable(folder), dict(provenance)
        self.path, self._rejects = self.folder / NAME, self.folder / REJECTED
        self.done: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.prompts: dict[str, str] = {}
        self.rejected: Counter[str] = Counter()
        self._check(to_json(dict(settings)))
        for path in (self.path, self._rejects):
            cut_unfinished(path)
        for line in read_lines(self.path):
            self.done.add(line["uid"])
            self.counts[line["metadata"]["kind"]] += 1
            self.prompts[line["uid"]] = line["prompt"]
        for line in read_lines(self._rejects):
            self.done.add(line["uid"])
            self.rejected[line["reason"]] += 1
        self._lines, self._reasons = self.path.open("ab"), self._rejects.open("ab")
        self._synced = time.monotonic()

    def add(self, uid: str, made: Made) -> None:
        """Writes a sample. Raises ReportError."""
        try:
            line = write_record(self.folder, uid, made, self._provenance)
            self._append(self._lines, line)
        except OSError as error:
            raise ReportError(f"cannot write {str(self.folder)!r}: {error.strerror or error}") from error
        self.done.add(uid)
        self.counts[made.kind] += 1

    def reject(self, uid: str, reason: str, detail: str) -> None:
        """Records a candidate that becomes no sample. Raises ReportError."""
        told = {"uid": uid, "reason": reason} | ({"detail": detail[:300]} if detail else {})
        try:
            self._append(self._reasons, told)
        except OSError as error:
            raise ReportError(f"cannot write {str(self.folder)!r}: {error.strerror or error}") from error
        self.done.add(uid)
        self.rejected[reason] += 1

    def close(self) -> None:
        """Syncs both listings to disk and closes them."""
        for file in (self._lines, self._reasons):
            os.fsync(file.fileno())
            file.close()

    def _append(self, file: BinaryIO, line: Mapping[str, Any]) -> None:
        """Appends a line and flushes it to the system, so that it survives this process; syncs at times."""
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        file.flush()
        if time.monotonic() > self._synced + _SYNC_SECONDS:
            for one in (self._lines, self._reasons):
                os.fsync(one.fileno())
            self._synced = time.monotonic()

    def _check(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / SETTINGS
        if not any(one.exists() and one.stat().st_size for one in (self.path, self._rejects)):
            files.write_json(path, settings, indent=1)
            return
        if not path.exists():
            raise ReportError(f"{self.path} was not written by such a run ({SETTINGS} is missing)")
        try:
            there = files.read_json(path)
            if not isinstance(there, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            raise ReportError(f"{path} is broken ({error}): choose another folder") from None
        for name in sorted(there):  # earlier versions kept fewer
            if there.get(name) != settings.get(name):
                raise ReportError(
                    f"the samples in {str(self.folder)!r} were made with {name} {there.get(name)!r}, not "
                    f"{settings.get(name)!r}: choose another folder, or remove this one to start over"
                )


def write_record(folder: pathlib.Path, uid: str, made: Made, provenance: Mapping[str, str]) -> dict[str, Any]:
    """Writes the images of a sample; returns its line in the record form."""
    places = [
        None if turn.image is None else f"images/{uid[-2:]}/{uid}_{number}.png"
        for number, turn in enumerate(made.turns, 1)
    ]
    trajectory = Trajectory(made.prompt, made.turns, uid, {"kind": made.kind, **made.facts})
    line = trajectory_to_json(trajectory, places) | dict(provenance)
    for turn, told in zip(made.turns, line["turns"], strict=True):
        if turn.image is not None:
            path, content = folder / told["image"], png(turn.image)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)  # no line names it before it is whole
            told["sha256"] = hashlib.sha256(content).hexdigest()
    return line


def read_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The objects of a listing; a last line that was never finished is left out.

    Raises:
      ReportError: a line is something else; names file and line.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                found = files.from_json(line)
                found["uid"]
            except (ValueError, KeyError, TypeError) as error:
                raise ReportError(f"{path}:{number} is not a JSON record with a uid ({error})") from None
            yield found
