"""Combines two tiers of checkpoints: frequent saves to the hosts' own disks, rarer ones to shared storage.

A restart takes the newest step that either tier has undamaged.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointError, NoRoom
from process_gen.checkpoints.local import LocalStore
from process_gen.checkpoints.store import CheckpointStore, ClosesOnExit
from process_gen.common import files
from process_gen.common.buckets import is_bucket, normal
from process_gen.distributed import lock
from process_gen.distributed.agreement import allgather_text, first_message

NAME = "local_tier.txt"
"""File of a workdir: the name of its folder on local disks, and the workdir's path. A new workdir, or a copy,
gets a new name, so that it never finds the steps of another one."""

_MACHINE = "machine"
"""File of the local folder of a process: the boot id of the machine that wrote there last."""


class TieredStore(ClosesOnExit):
    """A shared store, with a faster local one in front of it if there is one.

    `source` is the store with the step that `newest_whole_step` has found; the shared one before.
    """

    def __init__(self, shared: CheckpointStore, local: LocalStore | None = None):
        self._shared, self._local = shared, local
        self._tiers = [store for store in (shared, local) if store is not None]
        self.source: CheckpointStore = shared

    def due(self, step: int) -> bool:
        """True where the run saves by the schedule of either tier."""
        return any(store.due(step) for store in self._tiers)

    def newest_whole_step(self) -> int | None:
        """The newest step that is whole in a tier (see `source`); CheckpointCorrupt where all are broken."""
        if self._local is None:
            return self._shared.newest_whole_step()
        near = self._local.newest_whole_step()
        try:
            found = self._shared.newest_whole_step()
        except CheckpointCorrupt as error:
            if near is None:
                raise
            logging.error("%s", error)
            found = None
        if near is None or near <= (found or 0):
            return found
        self.source = self._local
        return near

    def latest_step(self) -> int | None:
        """The newest committed step of the shared store."""
        return self._shared.latest_step()

    def save(
        self, step: int, state: Any, iterator: Any = None, score: float | None = None, lasting: bool = True
    ) -> None:
        """Starts to save to the store whose schedule it is; see `CheckpointStore.save`.

        A `lasting` step goes to the shared store, whatever the schedule says. A local disk without room is
        logged, not raised.
        """
        if lasting or self._local is None or self._shared.due(step):
            self._shared.save(step, state, iterator, score)
        else:
            try:
                self._local.save(step, state, iterator)
            except NoRoom as error:  # costs a fast restart at most, so the run goes on
                logging.error("%s", error)

    def poll(self) -> None:
        for store in self._tiers:
            store.poll()

    def wait(self) -> None:
        for store in self._tiers:
            store.wait()

    def close(self) -> None:
        with contextlib.ExitStack() as both:
            for store in self._tiers:
                both.callback(store.close)


def open_store(
    config: Mapping[str, Any],
    workdir: str,
    metadata: dict[str, Any],
    state: Any,
    folder: pathlib.Path | None = None,
) -> TieredStore:
    """Opens the stores that `config` (`config.train`) asks for, for states like this one, real or abstract.

    `folder` has the other files of the run, those of the workdir by default.

    Raises CheckpointError where a folder cannot be written to, or as `LocalStore` does.
    """
    keep = {key: config[key] for key in ("keep", "keep_every", "keep_best")}
    shared = CheckpointStore(workdir, metadata, save_every=config["checkpoint_every"], **keep)
    shared.announce(state)
    if not (every := config["local_every"]):
        return TieredStore(shared)
    near = local_folder(config["local_dir"], workdir, folder)
    return TieredStore(shared, LocalStore(near, metadata, like=state, save_every=every))


def local_folder(disk: str, workdir: str, folder: pathlib.Path | None = None) -> str:
    """Collective: makes the folder of this process on a local disk, for the run of a shared workdir.

    `folder` has the files of the run, those of the workdir by default.

    Raises CheckpointError where the disk or the workdir cannot be written to.
    """
    name, wrong = "", ""
    try:
        if jax.process_index() == 0:
            place = pathlib.Path(folder or workdir).expanduser().resolve()
            name = _name_of(place, normal(workdir) if is_bucket(workdir) else str(place))
    except OSError as error:
        wrong = f"the workdir {workdir} cannot be written to ({error})"
    if wrong := first_message(wrong):
        raise CheckpointError(wrong)
    folder = pathlib.Path(disk).expanduser() / first_message(name) / f"process_{jax.process_index()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        who = f"process {jax.process_index()}"
        wrong = f"{who} cannot write to config.train.local_dir={disk} ({error}); give a folder that it can"
    if wrong := first_message(wrong):
        raise CheckpointError(wrong)
    _remove_others(folder)
    return str(folder)


def _remove_others(folder: pathlib.Path) -> None:
    """Removes the folders of processes that ran on this machine and run on another one now.

    A note in each folder names its machine, because several machines may share the disk.
    """
    machine = lock.boot()
    machines = allgather_text(machine)
    here = {f"process_{i}" for i, one in enumerate(machines) if one == machine}
    if not machine:
        return
    for other in folder.parent.glob("process_*"):
        note = other / _MACHINE
        if other.name not in here and note.exists() and note.read_text() == machine:
            logging.info("%s: removed, its process runs on another machine now", other)
            shutil.rmtree(other, ignore_errors=True)
    (folder / _MACHINE).write_text(machine)


def _name_of(folder: pathlib.Path, workdir: str) -> str:
    """The name that a workdir, whose files are in `folder`, has on local disks; made on its first start."""
    file = folder / NAME
    if file.exists():
        name, *place = file.read_text().splitlines() or [""]
        if name and place == [workdir]:
            return name
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    with files.whole(file) as unfinished:
        unfinished.write_text(f"{name}\n{workdir}\n")
    return name
