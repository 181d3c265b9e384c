"""Finds checkpoints, and reads one item of them without the rest."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from process_gen.checkpoints import arrays, export, manifest
from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointNotFound
from process_gen.checkpoints.published import sources
from process_gen.common import buckets
from process_gen.common.buckets import is_bucket

FOLDER = "checkpoints"
METADATA = "metadata"
MARKER = "commit_success.txt"
"""Written by Orbax as the last file of a step in a bucket, where folders cannot be renamed at once."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A step of a run, or a `.safetensors` file of ours: its weights and states by name, and the metadata.

    `packaged` are the weights of a file; None for a step.
    """

    place: epath.Path
    items: tuple[str, ...]
    metadata: dict[str, Any]
    packaged: sources.Source | None = None

    def source(self, item: str) -> sources.Source:
        """The arrays of an item, after a check of its files against the manifest.

        Collective: every host of a job has to call it, and checks a share of the files.

        Raises:
          CheckpointNotFound: there is no such item.
          CheckpointCorrupt: a file is missing, cut off or changed.
        """
        if item not in self.items:
            raise CheckpointNotFound(f"{self.place} holds no {item!r} weights, only {', '.join(self.items)}")
        if self.packaged is not None:
            return self.packaged
        if wrong := manifest.wrong_on_a_host(self.place, (item,)):
            raise CheckpointCorrupt(wrong)
        return sources.StoredArrays(self.place, item)

    def params(self, which: str = "ema") -> dict[str, Any]:
        """The weights, `ema` or `params`, as a nested dict of NumPy arrays; see `source`."""
        return sources.tree(self.source(which))


def open_saved(path: epath.PathLike) -> Saved:
    """Opens a workdir (its newest step), the folder of one step, or a `.safetensors` file of ours.

    Raises:
      CheckpointNotFound: nothing to load there.
      CheckpointCorrupt: a file is missing, cut off or changed.
    """
    place = absolute(path)
    if place.is_file() or place.suffix == ".safetensors":
        params, metadata = export.load_weights(str(place))
        return Saved(place, (metadata.get("which", "ema"),), metadata, sources.TreeArrays(params))
    step_dir = place if is_step(place) else latest_step_dir(place)
    items = tuple(item for item in manifest.items(step_dir) if item != METADATA)
    manifest.verify(step_dir, (METADATA,))
    return Saved(step_dir, items, read_json(step_dir, METADATA))


def absolute(path: epath.PathLike) -> epath.Path:
    """A path as Orbax takes it: absolute, `~` resolved; addresses of buckets as they are.

    Raises OSError without the library that opens them.
    """
    text = os.fspath(path)
    if is_bucket(text):
        buckets.connect()
    return epath.Path(text if "://" in text else Path(text).expanduser().absolute())


def steps(root: epath.Path) -> list[int]:
    """The committed steps in a folder of checkpoints, oldest first."""
    return sorted(int(p.name) for p in buckets.entries(root) if is_step(p))


def latest_step_dir(workdir: epath.Path) -> epath.Path:
    """The newest committed step of a workdir, or of its `checkpoints` folder; CheckpointNotFound for none."""
    for root in (workdir / FOLDER, workdir):
        if found := steps(root):
            return root / str(found[-1])
    if not workdir.exists():
        why = f"no such workdir: {workdir}"
    elif (workdir / FOLDER).is_dir() and unfinished(workdir / FOLDER):
        why = f"{workdir / FOLDER} holds only a save that was never finished"
    elif any(workdir.iterdir()):
        why = f"{workdir} is not the workdir of a training run: looked for {FOLDER}/<step> in it"
    else:
        why = f"the workdir {workdir} is empty: no checkpoint was saved in it yet"
    make = "python -m process_gen.train --config=configs/scenes.py:debug --workdir=..."
    raise CheckpointNotFound(f"{why}. Train one with: {make}")


def unfinished(root: epath.Path) -> list[epath.Path]:
    """Folders of saves that were never committed."""
    return [p for p in buckets.entries(root) if "orbax-checkpoint-tmp" in p.name or _lacks_marker(p)]


def _lacks_marker(path: epath.Path) -> bool:
    return is_bucket(path) and path.name.isdigit() and not is_step(path)


def is_step(path: epath.Path) -> bool:
    """Whether a folder is a committed step, which may be damaged."""
    if not path.name.isdigit():
        return False
    if is_bucket(path):
        return (path / MARKER).exists()
    if not path.is_dir():
        return False
    # Any of these makes it one of ours, so that a step that lost one of them is corrupt and not invisible.
    return any((path / name).exists() for name in (manifest.NAME, "_CHECKPOINT_METADATA", METADATA))


def read_json(step_dir: epath.Path, item: str) -> Any:
    """A JSON item of a step, whose files the caller has checked; CheckpointCorrupt if it cannot be read."""
    try:
        return ocp.JsonCheckpointHandler().restore(step_dir / item)
    except (ValueError, OSError) as error:
        raise manifest.corrupt(step_dir, f"{item} cannot be read ({error})") from error


def read_arrays(step_dir: epath.Path, item: str, wanted: arrays.FlatArrays) -> arrays.FlatArrays:
    """Reads the arrays of an item, whose files the caller has checked, as `wanted`: shape, dtype, sharding.

    Raises:
      CheckpointCorrupt: the description of the item cannot be read.
      CheckpointMismatch: names, shapes or dtypes differ.
    """
    handler = ocp.PyTreeCheckpointHandler()
    try:
        found = handler.metadata(step_dir / item).tree
    except (ValueError, KeyError, OSError) as error:
        raise manifest.corrupt(step_dir, f"the description of {item} cannot be read ({error})") from error
    arrays.check(
        _shown(arrays.flatten(found)),
        _shown(wanted),
        f"checkpoint {step_dir} ({item}) does not match the model of this run",
        end=". Use the config that the checkpoint was trained with (its metadata has it), or another workdir",
    )
    target = arrays.unflatten(wanted)
    args = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
    )
    return arrays.flatten(handler.restore(step_dir / item, args=args))


def _shown(named: arrays.FlatArrays) -> dict[str, str]:
    return {name: f"{np.dtype(x.dtype)}{tuple(x.shape)}" for name, x in named.items()}
