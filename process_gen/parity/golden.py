"""A folder with a published checkpoint and what the published program computes with it.

`golden.npz` holds inputs and answers, `golden.json` token ids and settings.
The keys that start with `train_` describe one packed row, those with `inf_`
and `flow_` a context and images sampled after it.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointMismatch, CheckpointNotFound
from process_gen.common import files
from process_gen.trajectory.controls import ControlIds

ARRAYS, SETTINGS = "golden.npz", "golden.json"


@dataclasses.dataclass(frozen=True)
class Golden:
    """Known answers: contents of `golden.npz` and `golden.json`; `place` is their folder, for messages."""

    place: str
    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise CheckpointMismatch(f"{self.place}/{ARRAYS} lacks {name}")
        return self.arrays[name]

    def optional(self, name: str) -> np.ndarray:
        """An array, or an empty one if it is not stored: the row has none."""
        return self.arrays.get(name, np.zeros(0, np.int64))

    def size(self, image: str, setting: str) -> tuple[int, int]:
        """Height and width of images [..., 3, H, W]; those of a setting where they are not stored."""
        found = self.arrays[image].shape[-2:] if image in self.arrays else self.setting(setting)
        return int(found[0]), int(found[1])

    def setting(self, *path: str) -> Any:
        """A value of `golden.json`; CheckpointMismatch where it is missing."""
        value: Any = self.settings
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                raise CheckpointMismatch(f"{self.place}/{SETTINGS} lacks {'.'.join(path)}")
            value = value[key]
        return value

    @property
    def ids(self) -> ControlIds:
        """The control tokens. Markup, which the published program lacks, gets the id of `im_end`."""
        start, end = self.setting("token_ids", "bos_token_id"), self.setting("token_ids", "eos_token_id")
        return ControlIds(
            end_of_text=end,
            im_start=start,
            im_end=end,
            vision_start=self.setting("token_ids", "start_of_image"),
            vision_end=self.setting("token_ids", "end_of_image"),
            **dict.fromkeys(("ins", "refine", "des", "des_end"), end),
        )


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jits for a single call; on CPUs without XLA's optimizations, which would take longer than the call."""
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=quick)


def read_golden(folder: epath.PathLike) -> Golden:
    """Reads the known answers of a folder."""
    place = epath.Path(folder)
    for name in (ARRAYS, SETTINGS):
        if not (place / name).is_file():
            raise CheckpointNotFound(f"{place} holds no {name}: it is no folder of known answers")
    try:
        with (place / ARRAYS).open("rb") as file:
            arrays = dict(np.load(file))
        settings = files.read_json(place / SETTINGS)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointCorrupt(
            f"the known answers in {place} cannot be read ({error}); get a fresh copy"
        ) from error
    return Golden(str(place), arrays, settings)
