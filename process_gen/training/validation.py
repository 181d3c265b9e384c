"""Losses on trajectories that are not trained on: the same batches, noise and timesteps each time.

The averaged parameters are scored, and nothing is dropped from the context.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import jax
from absl import logging
from jax.sharding import Mesh

from process_gen.data.buckets import Size, size_of
from process_gen.data.loader import Loader
from process_gen.distributed import offload, sharding
from process_gen.training.program import TrainProgram
from process_gen.training.step import TrainState
from process_gen.trajectory.batch import Batch


class Validation:
    """Computes the losses of the first batches of held-out trajectories, the same ones at each call.

    Args:
      loader: of the held-out trajectories, in their own order.
      programs: by image size.
      batches: how many are read each time.
      rows: of a batch, over all hosts.
    """

    def __init__(
        self, loader: Loader, programs: Mapping[Size, TrainProgram], mesh: Mesh, batches: int, rows: int
    ):
        self._loader, self._programs, self._mesh = loader, programs, mesh
        self._batches, self._rows = batches, rows

    def scalars(self, state: TrainState) -> dict[str, float]:
        """`validation/loss`, and `validation/<name>` of what the loss table has; all hosts call this.

        Losses without a target in the held-out trajectories are left out. Raises ValueError without a batch.
        """
        average, iterator = offload.on_devices(state.average), iter(self._loader)
        found, table = None, next(iter(self._programs.values())).recipe.losses
        try:
            for number, batch in enumerate(itertools.islice(iterator, self._batches)):
                program = self._programs[size_of(batch["image"])]
                rows = sharding.shard_batch(Batch(**batch), self._mesh, self._rows)
                one = program.losses(average, state.given, rows, jax.random.key(number))
                found = one if found is None else jax.tree.map(lambda a, b: a + b, found, one)
        finally:
            iterator.close()
        if found is None:
            raise ValueError("the held-out trajectories do not fill a batch")
        scored = jax.device_get((*found, state.step))
        values = {"loss": table.total(*scored), **table.metrics(*scored)}
        none = {f"loss/{name}" for name, count in scored[1].items() if not count}
        values = {f"validation/{name}": float(x) for name, x in values.items() if name not in none}
        logging.info("validation loss %.4f", values["validation/loss"])
        return values
