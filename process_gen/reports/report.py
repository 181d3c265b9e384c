"""Everything that a sampling run leaves behind for people, in one folder.

OUT/index.html               every trajectory, step by step
OUT/trajectories.jsonl       the same for programs; with its images, what `data.source=folder` reads
OUT/images/<id>_<step>_<sketch|refined>.png, <id>_input.png
OUT/strips/<id>.png          one picture per trajectory
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from process_gen.reports import files, images, page, records
from process_gen.reports import strip as strips
from process_gen.trajectory.record import to_json
from process_gen.trajectory.sampled import SampledTrajectory


@dataclasses.dataclass(frozen=True)
class Paths:
    """The files of a report."""

    jsonl: pathlib.Path
    page: pathlib.Path
    images: tuple[pathlib.Path, ...]
    strips: tuple[pathlib.Path, ...]


def write_report(
    outdir: str | os.PathLike[str],
    trajectories: Sequence[SampledTrajectory],
    title: str,
    summary: Mapping[str, Any] | None = None,
    results: page.Results | None = None,
) -> Paths:
    """Writes the whole report.

    Args:
      outdir: made if it does not exist; ReportError if it cannot be written.
      trajectories: named by their uid, else by their four-digit number.
      title: of the page.
      summary: what the run was: mode, checkpoint, number of steps, ...
      results: a table for the head of the page.
    """
    folder = files.check_writable(outdir)
    uids = [files.safe_name(t.uid or f"{i:04d}") for i, t in enumerate(trajectories)]
    name, times = collections.Counter(uid.lower() for uid in uids).most_common(1)[0] if uids else ("", 0)
    if times > 1:
        raise files.ReportError(f"{times} trajectories are called {name!r}")
    named = [
        dataclasses.replace(trajectory, uid=uid, verdict=to_json(trajectory.verdict))
        for uid, trajectory in zip(uids, trajectories, strict=True)
    ]
    saved, drawn = [], []
    for trajectory in named:
        saved.append(records.save_images(folder, trajectory))
        picture = strips.strip(trajectory, page.verdict_line(trajectory.verdict))
        place = files.inside(folder, f"strips/{trajectory.uid}.png")
        drawn.append(files.write_bytes(place, images.png(picture)))
    lines = map(records.record_of, named, saved)
    jsonl = records.write_jsonl(folder / "trajectories.jsonl", lines)
    html = page.write_page(folder / "index.html", named, title, summary, results)
    pictures = tuple(folder / path for one in saved for path in one.all)
    return Paths(jsonl, html, pictures, tuple(drawn))
