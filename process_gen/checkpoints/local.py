"""The fast tier: steps on a disk of every host's own, for a restart that finds the same hosts again.

Each host writes what its own devices hold and nobody waits for a shared file system, so that such saves can
follow one another closely. They are lost with the disk, and mean nothing to another mesh: what has to last
goes into the shared `CheckpointStore`. This is how Orbax saves to local storage (`primary_host=None`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from process_gen.checkpoints import arrays, manifest
from process_gen.checkpoints.agreement import gather
from process_gen.checkpoints.errors import CheckpointCorrupt
from process_gen.checkpoints.store import CheckpointStore

PLACEMENT = "placement"
_ALL_ARE_PRIMARY = ocp.options.MultiprocessingOptions(primary_host=None, barrier_sync_key_prefix="local")


class LocalStore(CheckpointStore):
    """Saves and restores the states of one run on the disk of this host.

    Args:
      folder: of this process alone.
      metadata: see `CheckpointStore`.
      like: the state, real or abstract: steps whose pieces lay on the devices in another way are not used.
      save_every: steps between saves.
    """

    def __init__(self, folder: str, metadata: dict[str, Any] | None = None, *, like: Any, save_every: int):
        self._placement = placement(like)
        logging.get_absl_logger().addFilter(_is_news)
        # Two: a host may be killed before it has a step that the others have.
        super().__init__(
            folder, {**(metadata or {}), PLACEMENT: self._placement}, save_every=save_every, keep=2
        )

    def _make_manager(self, **options: Any) -> ocp.CheckpointManager:
        pieces = ocp.type_handlers.ArrayHandler(
            primary_host=None, replica_id=None, use_replica_parallel=False
        )
        handlers = {
            (ocp.args.PyTreeSave, ocp.args.PyTreeRestore): ocp.PyTreeCheckpointHandler(
                multiprocessing_options=_ALL_ARE_PRIMARY,
                type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, pieces)),
            ),
            (ocp.args.JsonSave, ocp.args.JsonRestore): ocp.JsonCheckpointHandler(
                multiprocessing_options=_ALL_ARE_PRIMARY
            ),
        }
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for kinds, handler in handlers.items():
            for kind in kinds:
                registry.add(None, kind, handler)
        return ocp.CheckpointManager(
            self.root,
            options=ocp.CheckpointManagerOptions(
                **options,
                multiprocessing_options=_ALL_ARE_PRIMARY,
                # Folders that are made in the background are announced under one name for all hosts.
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            ),
            handler_registry=registry,
        )

    @property
    def _tends(self) -> bool:
        return True

    def _bytes(self, x: Any) -> int:
        pieces = x.addressable_shards if isinstance(x, jax.Array) else ()
        return sum(piece.data.nbytes for piece in pieces) if pieces else x.nbytes

    def newest_whole_step(self) -> int | None:
        """The newest step that every host has whole and can use; None where there is none.

        Steps that are broken on this host are set aside; those that not every host can use are removed.
        """
        for step in self.steps():
            if self._lies_elsewhere(step):
                self._remove(step, "its pieces lay on the devices in another way")
        wrong = {step: self._what_is_wrong_here(step) for step in self.steps()}
        good = [step for step, why in wrong.items() if not why]
        common = set.intersection(*(set(json.loads(text)) for text in gather(json.dumps(good))))
        for step, why in wrong.items():
            if why:
                self._set_aside(step, why)
            elif step not in common:
                self._remove(step, "not every host has this step")
        self._manager.reload()
        self._whole |= common
        return max(common, default=None)

    def _lies_elsewhere(self, step: int) -> bool:
        """Whether a step is that of another mesh; one that cannot be read is not."""
        with contextlib.suppress(CheckpointCorrupt):
            return self.metadata(step).get(PLACEMENT) != self._placement
        return False

    def _what_is_wrong_here(self, step: int) -> str:
        try:
            manifest.verify(self.root / str(step))
        except CheckpointCorrupt as error:
            return str(error)
        return ""

    def forget(self, after: int) -> None:
        """Removes the steps after one, from which the run does not go on."""
        for step in self.steps():
            if step > after:
                self._remove(step, f"the run goes on from step {after}")
        self._manager.reload()

    def _remove(self, step: int, why: str) -> None:
        logging.warning("removing %s: %s", self.root / str(step), why)
        (self.root / str(step)).rmtree()


def _is_news(record: Any) -> bool:
    """False for what Orbax warns of at every array that is written this way, and nobody can change."""
    return "Global object size logging disabled" not in record.getMessage()


def placement(state: Any) -> str:
    """A digest of which pieces of each array this process holds."""
    digest = hashlib.sha256()
    for name, leaf in arrays.named(state).items():
        x = arrays.abstract(leaf)
        pieces = x.sharding.addressable_devices_indices_map(x.shape).values()
        digest.update(repr((name, x.shape, str(x.dtype), sorted({repr(piece) for piece in pieces}))).encode())
    return digest.hexdigest()
