"""Everything that a sampling run leaves behind for people, in one folder.

OUT/index.html               every trajectory, step by step
OUT/trajectories.jsonl       the same for programs
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
    written, drawn = [], []
    for uid, trajectory in zip(uids, trajectories, strict=True):
        saved = records.save_images(folder, uid, trajectory.steps)
        given = records.save_image(folder, uid, "input", trajectory.prompt_image)
        written.append(records.record_of(trajectory, uid, saved, given))
        picture = strips.strip(trajectory, page.verdict_line(trajectory.verdict))
        drawn.append(files.write_bytes(files.inside(folder, f"strips/{uid}.png"), images.png(picture)))
    jsonl = records.write_jsonl(folder / "trajectories.jsonl", written)
    html = page.write_page(folder / "index.html", written, title, summary, results)
    named = [folder / name for record in written for name in record.images]
    return Paths(jsonl, html, tuple(named), tuple(drawn))
