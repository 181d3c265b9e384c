"""Reading: finding a checkpoint, and taking one item of it without the rest."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from process_gen.checkpoints import arrays, export, manifest
from process_gen.checkpoints.errors import CheckpointNotFound

FOLDER = "checkpoints"
METADATA = "metadata"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Weights and what is known about them.

    Attributes:
      params: nested dict of arrays.
      metadata: what the run stored beside them (its config, versions, the step).
      source: where they came from, for logs.
    """

    params: dict[str, Any]
    metadata: dict[str, Any]
    source: str


def load_params(path: str, which: str = "ema", like: Any = None) -> Loaded:
    """Loads only the weights: from a workdir, from one step's folder, or from a `.safetensors` file.

    Args:
      path: where to look.
      which: the item, `ema` or `params`.
      like: optional tree of `jax.ShapeDtypeStruct` (with shardings, if the weights are to be spread over a
        mesh) that the weights must match; without it they come as NumPy arrays.

    Raises:
      CheckpointNotFound: nothing to load there.
      CheckpointCorrupt: a file is missing, cut off or changed.
      CheckpointMismatch: the weights are not those of `like`.
    """
    place = absolute(path)
    if place.is_file() or place.suffix == ".safetensors":
        return _from_file(place, which, like)
    step_dir = place if is_step(place) else latest_step_dir(place)
    items = manifest.items(step_dir)
    if which not in items:
        raise CheckpointNotFound(
            f"{step_dir} holds no {which!r} weights, only {', '.join(i for i in items if i != METADATA)}"
        )
    manifest.verify(step_dir, (which, METADATA))
    wanted = None if like is None else {n: arrays.abstract(x) for n, x in arrays.named(like).items()}
    params = arrays.nested(read_arrays(step_dir, which, wanted))
    if like is not None:
        params = arrays.unnamed(like, arrays.named(params))
    return Loaded(params, read_json(step_dir, METADATA), str(step_dir))


def absolute(path: epath.PathLike) -> epath.Path:
    """A path as Orbax takes it: absolute, `~` resolved; addresses of object stores as they are."""
    text = os.fspath(path)
    return epath.Path(text if "://" in text else Path(text).expanduser().absolute())


def _from_file(place: epath.Path, which: str, like: Any) -> Loaded:
    params, metadata = export.load_weights(str(place))
    stored = metadata.get("which", "ema")
    if which != stored:
        raise CheckpointNotFound(f"{place} holds the {stored!r} weights, not {which!r}")
    if like is not None:
        wanted = {n: arrays.abstract(x) for n, x in arrays.named(like).items()}
        arrays.check_same(arrays.named(params), wanted, str(place))
        placed = {n: jax.device_put(x, wanted[n].sharding) for n, x in arrays.named(params).items()}
        params = arrays.unnamed(like, placed)
    return Loaded(params, metadata, str(place))


def steps(root: epath.Path) -> list[int]:
    """The committed steps in a folder of checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if is_step(p))


def latest_step_dir(workdir: epath.Path) -> epath.Path:
    """The newest committed step of a workdir (or of its `checkpoints` folder).

    Raises:
      CheckpointNotFound: the folder is missing, empty, foreign, or holds nothing but unfinished saves.
    """
    make = "Train one with: python -m process_gen.train --config=configs/scenes.py:debug --workdir=..."
    if not workdir.exists():
        raise CheckpointNotFound(f"no such workdir: {workdir}. {make}")
    if not workdir.is_dir():
        raise CheckpointNotFound(f"{workdir} is a file; give a workdir, a step's folder or .safetensors")
    for root in (workdir / FOLDER, workdir):
        if found := steps(root):
            return root / str(found[-1])
    if (workdir / FOLDER).is_dir() and unfinished(workdir / FOLDER):
        raise CheckpointNotFound(f"{workdir / FOLDER} holds only a save that was never finished. {make}")
    if any(workdir.iterdir()):
        raise CheckpointNotFound(
            f"{workdir} is not the workdir of a training run: looked for {FOLDER}/<step> in it. {make}"
        )
    raise CheckpointNotFound(f"the workdir {workdir} is empty: no checkpoint was saved in it yet. {make}")


def unfinished(root: epath.Path) -> list[epath.Path]:
    """Folders of saves that were never committed."""
    return sorted(p for p in root.iterdir() if "orbax-checkpoint-tmp" in p.name or _lacks_marker(p))


def _lacks_marker(path: epath.Path) -> bool:
    if not manifest.commits_by_marker(path) or not path.name.isdigit():
        return False
    return not (path / "commit_success.txt").exists()


def is_step(path: epath.Path) -> bool:
    """Whether a folder is a committed step, whole or not."""
    if not path.name.isdigit() or not path.is_dir() or _lacks_marker(path):
        return False
    # Any of these makes it one of ours, so that a step that lost one of them is corrupt and not invisible.
    return any((path / name).exists() for name in (manifest.NAME, "_CHECKPOINT_METADATA", METADATA))


def read_json(step_dir: epath.Path, item: str) -> Any:
    """A JSON item of a step, checked by the caller."""
    try:
        return ocp.JsonCheckpointHandler().restore(step_dir / item)
    except (ValueError, OSError) as error:
        raise manifest.corrupt(step_dir, f"{item} cannot be read ({error})") from error


def read_arrays(step_dir: epath.Path, item: str, wanted: arrays.Named | None = None) -> arrays.Named:
    """The arrays of one item, checked by the caller, by name.

    Args:
      step_dir: folder of the step.
      item: which item.
      wanted: what is expected, with shardings; None reads everything into NumPy arrays.

    Raises:
      CheckpointMismatch: names, shapes or dtypes differ.
    """
    handler = ocp.PyTreeCheckpointHandler()
    try:
        found = handler.metadata(step_dir / item).tree
    except (ValueError, KeyError, OSError) as error:
        raise manifest.corrupt(step_dir, f"the description of {item} cannot be read ({error})") from error
    if wanted is None:
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found)
        args = ocp.args.PyTreeRestore(restore_args=restore_args)
    else:
        arrays.check_same(arrays.named(found), wanted, f"checkpoint {step_dir} ({item})")
        target = arrays.nested(wanted)
        args = ocp.args.PyTreeRestore(
            item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
        )
    return arrays.named(handler.restore(step_dir / item, args=args))
