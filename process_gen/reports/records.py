"""Trajectories on disk: one JSON object per line, images beside it, as `data.folder` reads them.

Text is kept exactly as the model wrote it. Image paths are relative to the
folder of the JSONL and use `/`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from process_gen.reports import files, images
from process_gen.trajectory.record import trajectory_to_json
from process_gen.trajectory.stages import Trajectory


@dataclasses.dataclass(frozen=True)
class SavedImages:
    """Where the images of a trajectory lie, relative to the folder.

    Attributes:
      turns: one path for each turn.
      prompt: of the input image of the prompt, None where there is none.
    """

    turns: tuple[str, ...]
    prompt: str | None

    @property
    def all(self) -> tuple[str, ...]:
        """The input image first."""
        return self.turns if self.prompt is None else (self.prompt, *self.turns)


def save_images(folder: str | os.PathLike[str], trajectory: Trajectory) -> SavedImages:
    """Writes the images of a trajectory as PNG files into `folder`, named by its uid.

    images/<uid>_input.png, images/<uid>_<step>_<sketch|refined>.png; steps count
    from 1, and so do the corrections of a step after the first: `refined2`.

    Raises:
      ReportError: the uid is no safe name, or a file cannot be written.
    """

    def save(what: str, image: np.ndarray) -> str:
        relative = f"images/{files.safe_name(trajectory.uid)}_{what}.png"
        files.write_bytes(files.inside(folder, relative), images.png(image))
        return relative

    prompt = None if trajectory.prompt_image is None else save("input", trajectory.prompt_image)
    turns = []
    for number, step in enumerate(trajectory.steps, 1):
        turns.append(save(f"{number}_sketch", step.sketch))
        for i, turn in enumerate(step.refines, 1):
            turns.append(save(f"{number}_refined{'' if i == 1 else i}", turn.image))
    return SavedImages(tuple(turns), prompt)


def record_of(trajectory: Trajectory, saved: SavedImages) -> dict[str, Any]:
    """The line of a trajectory whose images have been saved."""
    return trajectory_to_json(trajectory, saved.turns, saved.prompt)


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> pathlib.Path:
    """Writes the records, all or none of them."""
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
    return files.write_bytes(path, "".join(lines).encode("ascii"))
