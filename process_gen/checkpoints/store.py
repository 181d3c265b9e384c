"""The checkpoints of a run: `workdir/checkpoints/<step>`, written while training goes on.

One step holds one item per field of the state (so that weights can be read without the optimizer), the state
of the data iterator of every host, the metadata of the run, and a manifest that is checked before reading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

import process_gen
from process_gen.checkpoints import arrays, load, manifest
from process_gen.checkpoints.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointMismatch,
    CheckpointNotFound,
    CheckpointNotSaved,
    NoRoom,
)
from process_gen.common import buckets, files
from process_gen.common.buckets import is_bucket
from process_gen.distributed.agreement import allgather_text, first_message

ITERATOR = "iterator"
QUARANTINE = "quarantine"
"""Folder of a workdir for broken steps: out of the way of a resumed run, and never deleted."""
_RESERVED = frozenset({ITERATOR, load.METADATA})
_SPARE = 1.05  # times the arrays' bytes: room for manifest, metadata and what a file system needs itself
_VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class _BestSteps(managers.PreservationPolicy):
    """Keeps the `count` steps with the highest of the scores, which not every step has."""

    count: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        scored = sorted((info.step for info in checkpoints if info.step in self.scores), key=self.scores.get)
        return [info.step in scored[-self.count :] for info in checkpoints]


class ClosesOnExit(contextlib.AbstractContextManager):
    """A context manager that calls its `close` at the end of the block."""

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        else:  # the error already raised is the one to show
            with contextlib.suppress(CheckpointError):
                self.close()


class CheckpointStore(ClosesOnExit):
    """Saves and restores the states of one run.

    Args:
      metadata: JSON-able facts to keep with every step, as they are when it is saved: the config, the
        tokenizer.
      save_every: steps between saves, for `due`.
      keep: how many of the newest steps stay.
      keep_every: steps that are a multiple of it stay for good; 0 for none.
      keep_best: how many of the steps with the highest scores stay besides.
    """

    _shared = True  # all hosts write to one folder

    def __init__(
        self,
        workdir: str,
        metadata: dict[str, Any] | None = None,
        *,
        save_every: int = 1000,
        keep: int = 3,
        keep_every: int = 0,
        keep_best: int = 0,
    ):
        self._metadata = metadata or {}
        self._save_every, self._keep = save_every, keep
        self._whole: set[int] = set()  # steps whose files have been checked
        self._under_way = False  # a save whose end `poll` has not seen yet
        self.root = _folder(workdir)
        self._remove_unfinished()
        multihost_utils.sync_global_devices("process_gen: unfinished checkpoints removed")
        self._scores: dict[int, float] = {}
        for step in self.steps() if keep_best else ():
            with contextlib.suppress(CheckpointError):  # a broken step has no score
                if (score := load.read_json(self.root / str(step), load.METADATA).get("score")) is not None:
                    self._scores[step] = score
        stay = [managers.LatestN(keep)]
        stay += [managers.EveryNSteps(keep_every)] if keep_every else []
        stay += [_BestSteps(keep_best, self._scores)] if keep_best else []
        self._manager = self._make_manager(
            preservation_policy=managers.AnyPreservationPolicy(stay),
            lightweight_initialize=True,
            temporary_path_class=manifest.temporary_path(self.root),
        )

    def _make_manager(self, **options: Any) -> ocp.CheckpointManager:
        barrier = manifest.BarrierWithHashes(self.root)
        options["async_options"] = ocp.AsyncOptions(barrier_sync_fn=barrier)
        return ocp.CheckpointManager(self.root, options=ocp.CheckpointManagerOptions(**options))

    @property
    def _manages_folder(self) -> bool:
        """Whether this process cleans up the folder and checks its free space."""
        return not self._shared or jax.process_index() == 0

    def _bytes(self, x: Any) -> int:
        """Bytes of an array that are saved in the folder."""
        return x.nbytes

    def due(self, step: int) -> bool:
        """True where the run saves by its schedule."""
        return step > 0 and step % self._save_every == 0

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return load.steps(self.root)

    def latest_step(self) -> int | None:
        """The newest committed step."""
        return (self.steps() or [None])[-1]

    def newest_whole_step(self) -> int | None:
        """The newest step of which every file is as it was written; None where nothing was ever saved.

        Steps that are not are moved to `workdir/quarantine`, with an error in the log. Collective: every host
        checks a share of the files, and all come to the same answer.

        Raises:
          CheckpointCorrupt: there are steps, and none of them is whole.
        """
        wrong = ""
        # What process 0 sees counts: on some file systems, others list new folders late.
        while told := first_message(str(self.latest_step() or "") if jax.process_index() == 0 else ""):
            step = int(told)
            if not (wrong := manifest.wrong_on_a_host(self.root / str(step))):
                self._whole.add(step)
                return step
            self._set_aside(step, wrong)
            multihost_utils.sync_global_devices(f"process_gen: step {step} set aside")
            self._manager.reload()
        if wrong:
            raise CheckpointCorrupt(
                f"no step of {self.root} is whole; all are in {self.root.parent / QUARANTINE} now. "
                "Put back a copy, or start the run anew in another workdir."
            )
        return None

    def _set_aside(self, step: int, wrong: str) -> None:
        """Moves a step to the quarantine, with a note that says why."""
        logging.error("%s", wrong)
        if not self._manages_folder:
            return
        folder = self.root.parent / QUARANTINE
        folder.mkdir(parents=True, exist_ok=True)
        names = itertools.chain([str(step)], (f"{step}-{n}" for n in itertools.count(2)))
        place = next(folder / name for name in names if not (folder / name).exists())
        (folder / f"{place.name}.txt").write_text(wrong + "\n")
        buckets.move(self.root / str(step), place)
        logging.error("moved it to %s, and taking the step before it", place)

    def poll(self) -> None:
        """Raises CheckpointNotSaved if a save in the background has failed; does not wait for one."""
        if self._under_way and not self._manager.is_saving_in_progress():
            self._under_way = False
            self.wait()  # returns at once, or raises the error of the save

    def save(self, step: int, state: Any, iterator: Any = None, score: float | None = None) -> None:
        """Starts to save (all hosts call it); the state may be used, and donated, as soon as this returns.

        Args:
          step: number of batches that the state has seen; larger than any step saved before.
          state: dataclass or dict of trees of arrays.
          iterator: the data iterator, whose `get_state` holds the `rows` of the global batch that it reads.
          score: how good the state is, for `keep_best`.

        Raises:
          CheckpointNotSaved: this step or a later one exists, there is no room, or the state holds a number
            that is not finite. That an earlier save has failed is logged: this one may go well.
        """
        if bad := arrays.not_finite(state):
            raise CheckpointNotSaved(
                f"step {step} was not saved: {len(bad)} arrays are not finite ({arrays.shorten(bad)}); "
                f"the last good step in {self.root} is {self.latest_step()}"
            )
        try:
            self.wait()  # as Orbax would; then old steps are deleted, and the free space is known
        except CheckpointNotSaved as error:
            logging.error("%s", error)
        if wrong := first_message(self._missing_room(step, state)):
            raise NoRoom(wrong)  # on all hosts alike
        items = {}
        for field, tree in arrays.fields(state).items():
            if leaves := arrays.flatten(tree):
                stored = {name: arrays.key_to_data(x) for name, x in leaves.items()}
                items[field] = ocp.args.PyTreeSave(arrays.unflatten(stored))
        if iterator is not None:
            items[ITERATOR] = ocp.args.JsonSave(
                {"hosts": allgather_text(json.dumps({"state": iterator.get_state()}))}
            )
        facts = {**json.loads(json.dumps(self._metadata)), "step": step, "versions": versions()}
        if score is not None:
            self._scores[step] = facts["score"] = float(score)
        items[load.METADATA] = ocp.args.JsonSave(facts)
        with self._failures(f"step {step}"):
            saved = self._manager.save(step, args=ocp.args.Composite(**items))
        self._under_way = True
        if not saved:
            raise CheckpointNotSaved(
                f"step {step} was not saved: {self.root} already holds step {self.latest_step()}. "
                "Resume from it, or use another workdir."
            )

    def announce(self, state: Any) -> None:
        """Logs the disk space that the steps of a run take; a warning where there is less."""
        if not self._manages_folder:
            return
        one, free, there = self._size(state), self._free(), min(len(self.steps()), self._keep)
        logging.log(
            logging.WARNING if free < (self._keep + 1 - there) * one else logging.INFO,
            "a checkpoint takes %.3g GB, %.3g GB with those that stay (train.keep=%d) and the one that is "
            "written; %s has %s. Each of %d hosts holds its share in memory while it writes",
            one / 1e9,
            (self._keep + 1) * one / 1e9,
            self._keep,
            self.root,
            "no limit" if free == math.inf else f"{free / 1e9:.3g} GB left",
            jax.process_count(),
        )

    def _size(self, state: Any) -> int:
        return sum(self._bytes(x) for x in jax.tree.leaves(state) if hasattr(x, "nbytes"))

    def _free(self) -> float:
        """Bytes that the folder has left; infinity for a bucket."""
        return math.inf if is_bucket(self.root) else shutil.disk_usage(self.root).free

    def _missing_room(self, step: int, state: Any) -> str:
        if not self._manages_folder:
            return ""
        needed, free = _SPARE * self._size(state), self._free()
        if free >= needed:
            return ""
        return (
            f"step {step} needs {needed / 1e9:.3g} GB and {self.root} has {free / 1e9:.3g} GB left; "
            f"{self._kept()}. Make room and start the same command again."
        )

    def _kept(self) -> str:
        last = self.latest_step()
        return "nothing has been saved yet" if last is None else f"the last good one is step {last}"

    def wait(self) -> None:
        """Waits until everything is on disk; raises CheckpointNotSaved where a save has failed."""
        with self._failures("a step"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then closes the manager."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(self, like: Any, iterator: Any = None, step: int | None = None) -> Any:
        """Reads a state back, onto the devices that `like` names.

        Args:
          like: the state to fill, real or abstract (`jax.ShapeDtypeStruct` with shardings).
          iterator: the data iterator to set to where it was.
          step: None for the newest.

        Raises:
          CheckpointNotFound: there is none.
          CheckpointCorrupt: a file is missing, cut off or changed.
          CheckpointMismatch: it belongs to another model, or lacks the state of a data iterator.
        """
        step_dir = self._step_dir(step)
        if int(step_dir.name) not in self._whole:
            manifest.verify(step_dir)
        fields = {name: tree for name, tree in arrays.fields(like).items() if arrays.flatten(tree)}
        stored = set(manifest.items(step_dir)) - _RESERVED
        if stored != set(fields):
            raise CheckpointMismatch(
                f"checkpoint {step_dir} holds {', '.join(sorted(stored))}, this run has "
                f"{', '.join(sorted(fields))}; use the config that it was trained with, or another workdir"
                + (
                    "; `networks` are those that losses read, which no run gains or loses: another workdir "
                    f"can start from these weights, --config.train.init={self.root.parent}"
                    if "networks" in stored ^ set(fields)
                    else ""
                )
            )
        restored = {}
        for name, tree in fields.items():
            leaves = arrays.flatten(tree)
            found = load.read_arrays(step_dir, name, {n: arrays.abstract(x) for n, x in leaves.items()})
            restored[name] = arrays.unflatten_like(
                tree, {n: arrays.data_to_key(found[n], x) for n, x in leaves.items()}
            )
        if iterator is not None:
            self._restore_iterator(step_dir, iterator)
        return {**like, **restored} if isinstance(like, dict) else like.replace(**restored)

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """What was stored with a step: the metadata of the run, `step`, `versions` and, if given, `score`."""
        step_dir = self._step_dir(step)
        manifest.verify(step_dir, (load.METADATA,))
        return load.read_json(step_dir, load.METADATA)

    def _step_dir(self, step: int | None) -> epath.Path:
        if step is None:
            return load.latest_step_dir(self.root.parent)
        if step not in self._whole and step not in self.steps():
            raise CheckpointNotFound(f"no step {step} in {self.root}; there are {self.steps() or 'none'}")
        return self.root / str(step)

    def _restore_iterator(self, step_dir: epath.Path, iterator: Any) -> None:
        if ITERATOR not in manifest.items(step_dir):
            raise CheckpointMismatch(f"checkpoint {step_dir} was saved without the state of a data iterator")
        states = [json.loads(text)["state"] for text in load.read_json(step_dir, ITERATOR)["hosts"]]
        merged = dict(states[0])
        if isinstance(merged["rows"], dict):  # `set_state` refuses the older format
            # Each row of the global batch has a state of its own, so any number of hosts can go on with them.
            merged["rows"] = {row: found for state in states for row, found in state["rows"].items()}
        iterator.set_state(merged)

    @contextlib.contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        """Turns every error while writing into a CheckpointNotSaved that names the last good step."""
        try:
            yield
        except Exception as error:
            kept = "what is there cannot be listed"
            with contextlib.suppress(Exception):  # of a bucket, which may not answer now either
                self._manager.reload()  # forget the step that is not there
                kept = self._kept()
                self._remove_unfinished()  # a full disk gets its space back
            if is_bucket(self.root):
                error = buckets.failure(error, "of the bucket")
            found = CheckpointNotSaved(f"{what} could not be saved in {self.root} ({error}); {kept}")
            if files.passes(error) or isinstance(error, (jax.errors.JaxRuntimeError, TimeoutError)):
                found.exit_code = 1  # not 2, which is final: another host or a file system is gone
            raise found from error

    def _remove_unfinished(self) -> None:
        """Deletes saves that a killed process left unfinished; no other run writes here."""
        for path in load.unfinished(self.root) if self._manages_folder else ():
            logging.warning("removing %s, a save that was never finished", path)
            path.rmtree()


def versions() -> dict[str, str]:
    """Versions of what made a checkpoint, with the git revision if there is one."""
    found = {"process_gen": process_gen.__version__, "python": platform.python_version()}
    found.update({name: packages.version(name) for name in _VERSIONS})
    source = Path(process_gen.__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(source), "rev-parse", "HEAD"]
        git = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        found["git"] = git.stdout.strip()
    return found


def _folder(workdir: str) -> epath.Path:
    root = load.absolute(workdir) / load.FOLDER
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(f"{workdir} cannot be a workdir: a file is in the way ({error})") from error
    except OSError as error:
        raise CheckpointError(f"the workdir {workdir} cannot be written to ({error})") from error
    return root
