"""Losses on trajectories that are not trained on: the same batches, noise and timesteps each time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import jax
from absl import logging

from process_gen.data.buckets import Size, size_of
from process_gen.data.loader import Loader
from process_gen.distributed import offload
from process_gen.training.program import TrainProgram
from process_gen.training.step import TrainState


def validation_losses(
    state: TrainState, held_out: Loader, programs: Mapping[Size, TrainProgram], batches: int
) -> dict[str, float]:
    """Scores the averaged parameters on the first `batches`, with nothing dropped from the context.

    All hosts call this. Returns `validation/loss`, and `validation/<name>` of what the loss table has; losses
    without a target in these batches are left out. Raises ValueError where there is no batch.
    """
    average, iterator = offload.on_devices(state.average), iter(held_out)
    found, table = None, next(iter(programs.values())).recipe.losses
    try:
        for number, batch in enumerate(itertools.islice(iterator, batches)):
            program = programs[size_of(batch["image"])]
            one = program.losses(average, state.given, program.placed(batch), jax.random.key(number))
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
