"""Users' own trajectories: a folder with `trajectories.jsonl` and its images.

One JSON object per line:

    {"prompt": "a cat on a mat", "steps": [
      {"instruction": "draw the mat", "description": "a mat", "sketch": "1/a.png"},
      {"instruction": "add the cat", "description": "a cat on a mat", "sketch": "1/b.jpg",
       "inspect": "the cat floats", "refine": "put the cat down", "refined": "1/c.png"}]}
    {"image": "2/in.png", "instruction": "make the cat red", "steps": [{"sketch": "2/out.png"}]}

A prompt may hold an input image, `image`, between two texts: `prompt` before it
and `instruction` after it. Either text may be left out, not both.

`uid` and `metadata` are optional, so are `instruction` with `description` (a
trajectory without text plans), `inspect`, `refine` with `refined`, `sketch_ok`
(whether the draft carries out its plan, false by default where there is a
`refine`) and `plan_ok` (whether the plan serves the prompt: the words of one that
does not are not learned). Images are PNG, JPEG or WebP of any size and mode (see
`images`), cropped around their middle to the layout's shape, or to the nearest
one of several (`buckets`), and resized. Paths are relative to the folder and may
not leave it.
"""

from __future__ import annotations

import copy
import difflib
import errno
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tqdm
from absl import logging

from process_gen.data import images
from process_gen.data.encode import BadTrajectory
from process_gen.data.packing import TooManyBadTrajectories, allowance
from process_gen.trajectory.stages import Plan, Refinement, Step, Trajectory

LISTING, SHAPES = "trajectories.jsonl", "shapes.json"

_FOR_GOOD = (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
"""What is wrong with a file that is broken (Pillow gives no number) or is not there; the rest may pass."""

_TRAJECTORY_KEYS = ("prompt", "image", "instruction", "steps", "uid", "metadata")
_VERDICTS = ("sketch_ok", "plan_ok")
_STEP_KEYS = ("instruction", "description", "sketch", "inspect", "refine", "refined", *_VERDICTS)


class FolderSource:
    """Random access to the trajectories of a folder; images are read when asked for."""

    def __init__(
        self,
        folder: str | pathlib.Path,
        image_size: tuple[int, int],
        *,
        bad: Literal["fail", "skip"] = "fail",
        budget: float | None = None,
    ):
        """Reads the listing and checks every line of it.

        Args:
          folder: holds `trajectories.jsonl`.
          image_size: height and width that images are brought to.
          bad: `fail` at the first bad line, or `skip` it and name it in the log. Images are
            checked when they are read; the loader's policy says what happens then.
          budget: the share of lines that `skip` may leave out; `allowance` by default.

        Raises:
          FileNotFoundError: there is no listing.
          BadTrajectory: a bad line, named by file, line and field.
          TooManyBadTrajectories: more bad lines than the budget.
        """
        self.folder, self.image_size = pathlib.Path(folder).resolve(), image_size
        self.listing = self.folder / LISTING
        self.name = f"folder {self.folder.name}"
        if not self.listing.is_file():
            raise FileNotFoundError(f"{self.listing} does not exist: a folder of trajectories needs it")
        self._entries: list[tuple[int, dict[str, Any]]] = []
        self.skipped: list[str] = []
        lines = self.listing.read_bytes().splitlines()
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
        budget = allowance(len(lines)) if budget is None else budget
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
        number, entry = self._entries[index]
        image = self._image(number, "image", entry["image"]) if "image" in entry else None
        steps = tuple(self._step(number, place, step) for place, step in enumerate(entry["steps"]))
        uid = entry.get("uid", f"{self.folder.name}:{number}")
        return Trajectory(
            prompt=entry.get("prompt", ""),
            steps=steps,
            uid=uid,
            metadata=entry.get("metadata", {}),
            prompt_image=image,
            instruction=entry.get("instruction", ""),
        )

    def steps(self) -> int:
        """Steps of all trajectories together."""
        return sum(len(entry["steps"]) for _, entry in self._entries)

    def shapes(self) -> list[tuple[int, int] | None]:
        """Height and width of the image that each trajectory ends with; None where it cannot be read.

        They are looked up once and kept beside the listing, in `shapes.json`, so that every host and every
        start of a run goes by the same ones, and a million files are opened one time only.

        Raises:
          OSError: an image is there and cannot be had now.
        """
        kept, digest = self.folder / SHAPES, hashlib.sha256(self.listing.read_bytes()).hexdigest()
        try:
            known = json.loads(kept.read_text("utf-8"))
            if known["listing"] == digest and len(known["shapes"]) == len(self):
                return [shape and (shape[0], shape[1]) for shape in known["shapes"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # looked up anew
        lines = tqdm.tqdm(self._entries, unit=" images", desc="shapes of images", mininterval=1.0)
        found = [self._shape(number, entry["steps"][-1]) for number, entry in lines]
        unfinished = kept.with_name(f"{SHAPES}.{os.getpid()}")
        try:
            unfinished.write_text(json.dumps({"listing": digest, "shapes": found}), "utf-8")
            unfinished.replace(kept)
        except OSError as error:
            logging.warning("%s cannot be written (%s): every start looks up all shapes again", kept, error)
        return found

    def _shape(self, number: int, step: dict[str, Any]) -> tuple[int, int] | None:
        """Height and width of what a step ends with; None where no start will ever read it."""
        try:
            return images.shape_of(self._path(number, "steps", step.get("refined", step["sketch"])))
        except images.UNREADABLE as error:
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

    def _step(self, number: int, place: int, step: dict[str, Any]) -> Step:
        refine = None
        if "refine" in step:
            refine = Refinement(
                step["refine"], self._image(number, f"steps[{place}].refined", step["refined"])
            )
        return Step(
            sketch=self._image(number, f"steps[{place}].sketch", step["sketch"]),
            plan=Plan(step["instruction"], step["description"]) if "instruction" in step else None,
            inspect=step.get("inspect"),
            refine=refine,
            sketch_ok=step.get("sketch_ok", refine is None),
            plan_ok=step.get("plan_ok", True),
        )

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        """Returns the checked object of one line."""
        try:
            entry = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise self._bad(number, "line", f"is not UTF-8: {error.reason}") from None
        except json.JSONDecodeError as error:
            raise self._bad(number, "line", f"is not JSON: {error}") from None
        self._check_object(number, "line", entry, _TRAJECTORY_KEYS)
        self._check_prompt(number, entry)
        if "uid" in entry:
            self._text(number, "uid", entry)
        if not isinstance(entry.get("metadata", {}), dict):
            raise self._bad(number, "metadata", "is not an object")
        steps = entry.get("steps")
        if not isinstance(steps, list) or not steps:
            raise self._bad(number, "steps", "must be a list of at least one step")
        for place, step in enumerate(steps):
            self._check_step(number, f"steps[{place}]", step)
        return entry

    def _check_prompt(self, number: int, entry: dict[str, Any]) -> None:
        """A prompt is a text, or an input image with a text before or after it."""
        if "image" in entry:
            self._path(number, "image", self._text(number, "image", entry))
        elif "instruction" in entry:
            raise self._bad(number, "instruction", "stands after an image, and there is no image")
        texts = [key for key in ("prompt", "instruction") if key in entry]
        for key in texts if "image" in entry and texts else ("prompt",):
            if not self._text(number, key, entry).strip():
                raise self._bad(number, key, "is empty")

    def _check_step(self, number: int, field: str, step: Any) -> None:
        self._check_object(number, field, step, _STEP_KEYS)
        self._path(number, f"{field}.sketch", self._text(number, f"{field}.sketch", step))
        for pair in (("instruction", "description"), ("refine", "refined")):
            for key, other in (pair, pair[::-1]):
                if key in step and other not in step:
                    raise self._bad(number, f"{field}.{other}", f"is missing beside {key}")
        for key in ("instruction", "description", "inspect", "refine", "refined"):
            if key in step:
                self._text(number, f"{field}.{key}", step)
        if "refined" in step:
            self._path(number, f"{field}.refined", step["refined"])
        for key in _VERDICTS:
            if not isinstance(step.get(key, True), bool):
                raise self._bad(number, f"{field}.{key}", "is neither true nor false")

    def _check_object(self, number: int, field: str, value: Any, keys: Sequence[str]) -> None:
        if not isinstance(value, dict):
            raise self._bad(number, field, "is not a JSON object")
        for key in value:
            if key not in keys:
                nearest = difflib.get_close_matches(key, keys, 1)
                raise self._bad(number, field, f"has an unknown key {key!r}" + _did_you_mean(nearest))

    def _text(self, number: int, field: str, holder: dict[str, Any]) -> str:
        key = field.rpartition(".")[2]
        if key not in holder:
            raise self._bad(number, field, "is missing")
        if not isinstance(holder[key], str):
            raise self._bad(number, field, "is not text")
        return holder[key]

    def _path(self, number: int, field: str, name: str) -> pathlib.Path:
        """Returns the file that `name` points to, inside the folder."""
        if not name or "\0" in name:
            raise self._bad(number, field, f"is no file name: {name!r}")
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise self._bad(number, field, f"leaves the folder: {name!r}")
        return path

    def _image(self, number: int, field: str, name: str) -> np.ndarray:
        path = self._path(number, field, name)
        try:
            return images.read_image(path, self.image_size)
        except FileNotFoundError:
            raise self._bad(number, field, f"does not exist: {name!r}") from None
        except images.UNREADABLE as error:
            raise self._bad(number, field, f"is no readable PNG, JPEG or WebP: {name!r} ({error})") from None

    def _bad(self, number: int, field: str, problem: str) -> BadTrajectory:
        return BadTrajectory(f"{self.listing}, line {number}: {field} {problem}")


def _did_you_mean(nearest: Sequence[str]) -> str:
    return f", did you mean {nearest[0]!r}?" if nearest else ""
