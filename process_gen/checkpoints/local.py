"""The local tier: saves steps to a disk of each host's own, for a restart on the same hosts.

Each process writes the shards of its own devices and does not wait for a shared file system, so saves can be
frequent. They are lost with the disk, and cannot be read on another mesh: what has to last goes into the
shared `CheckpointStore`. This is how Orbax saves to local storage (`primary_host=None`).
"""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from process_gen.checkpoints import arrays, manifest
from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointError
from process_gen.checkpoints.store import CheckpointStore
from process_gen.distributed.agreement import allgather_text, first_message

PLACEMENT, START = "placement", "start"
"""Keys of a step's metadata: which shards this process held (`placement`), and which start saved it."""

_ALL_ARE_PRIMARY = ocp.options.MultiprocessingOptions(primary_host=None, barrier_sync_key_prefix="local")


class LocalStore(CheckpointStore):
    """Saves and restores the states of one run on the disk of this host, in a folder of this process alone.

    Steps whose shards were placed otherwise than those of the state `like` are not used.

    Raises:
      CheckpointError: a process holds shards of two replicas of an array, and Orbax would save those of one.
    """

    _shared = False

    def __init__(self, folder: str, metadata: dict[str, Any] | None = None, *, like: Any, save_every: int):
        self._placement = placement(like)
        logging.get_absl_logger().addFilter(_is_news)
        if wrong := first_message(_not_saved(like)):
            raise CheckpointError(wrong)
        # Two starts from one step both write later steps of the same numbers: hosts must not mix them.
        start = first_message(uuid.uuid4().hex if jax.process_index() == 0 else "")
        facts = {**(metadata or {}), PLACEMENT: self._placement, START: start}
        # Two: a host may be killed before it has a step that the others have.
        super().__init__(folder, facts, save_every=save_every, keep=2)

    def _make_manager(self, **options: Any) -> ocp.CheckpointManager:
        pieces = ocp.type_handlers.ArrayHandler(
            primary_host=None, replica_id=None, use_replica_parallel=False
        )
        trees = ocp.PyTreeCheckpointHandler(
            multiprocessing_options=_ALL_ARE_PRIMARY,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, pieces)),
        )
        facts = ocp.JsonCheckpointHandler(multiprocessing_options=_ALL_ARE_PRIMARY)
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for kind in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
            registry.add(None, kind, trees)
        for kind in (ocp.args.JsonSave, ocp.args.JsonRestore):
            registry.add(None, kind, facts)
        return ocp.CheckpointManager(
            self.root,
            options=ocp.CheckpointManagerOptions(
                **options,
                multiprocessing_options=_ALL_ARE_PRIMARY,
                # Orbax announces folders made in the background once for all hosts; here each makes its own.
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            ),
            handler_registry=registry,
        )

    def _bytes(self, x: Any) -> int:
        if not isinstance(x, jax.Array):
            return x.nbytes
        return sum({repr(piece.index): piece.data.nbytes for piece in x.addressable_shards}.values())

    def newest_whole_step(self) -> int | None:
        """The newest step that every host has whole, from the same start, and can use; None if there is none.

        Collective. Removes steps that not every host can use, and damaged ones older than the result, which
        a kill leaves where it interrupts a deletion. Other damaged steps are moved to the quarantine.
        """
        mine: dict[int, str] = {}
        broken: dict[int, str] = {}
        for step in self.steps():
            try:
                manifest.verify(self.root / str(step))
                facts = self.metadata(step)
            except CheckpointCorrupt as error:
                broken[step] = str(error)
                continue
            if facts.get(PLACEMENT) == self._placement:
                mine[step] = facts.get(START, "")
            else:
                self._remove(step, "its pieces lay on the devices in another way")
        everyones = [
            set(map(tuple, json.loads(text))) for text in allgather_text(json.dumps(sorted(mine.items())))
        ]
        common = {step for step, _ in set.intersection(*everyones)}
        newest = max(common, default=None)
        for step in mine.keys() - common:
            self._remove(step, "not every host has this step")
        for step, why in broken.items():
            if newest is not None and step < newest:
                self._remove(step, why)
            else:
                self._set_aside(step, why)
        self._manager.reload()
        self._whole |= common
        return newest

    def _remove(self, step: int, why: str) -> None:
        logging.warning("removing %s: %s", self.root / str(step), why)
        (self.root / str(step)).rmtree()


def _is_news(record: Any) -> bool:
    """Log filter: False for a warning of Orbax about every array saved with `primary_host=None`."""
    return "Global object size logging disabled" not in record.getMessage()


def _not_saved(state: Any) -> str:
    """Says where Orbax would leave shards out, else "": it writes those of the first one's replica only."""
    for name, x in arrays.flatten(state).items():
        pieces = x.addressable_shards if isinstance(x, jax.Array) else ()
        written = {repr(piece.index) for piece in pieces if piece.replica_id == pieces[0].replica_id}
        if written != {repr(piece.index) for piece in pieces}:
            return (
                f"process {jax.process_index()} holds parts of two copies of {name}, and its disk would get "
                "those of one: choose config.mesh so that no copy of the model ends in the middle of a host, "
                "or set config.train.local_every=0"
            )
    return ""


def placement(state: Any) -> str:
    """A digest of the number of processes, and of which shards of each array this process holds."""
    digest = hashlib.sha256(str(jax.process_count()).encode())
    for name, leaf in arrays.flatten(state).items():
        x = arrays.abstract(leaf)
        pieces = x.sharding.addressable_devices_indices_map(x.shape).values()
        digest.update(repr((name, x.shape, str(x.dtype), sorted({repr(piece) for piece in pieces}))).encode())
    return digest.hexdigest()
