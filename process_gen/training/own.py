"""Training on states of its own: images in context that the model has drawn, and what that costs.

At every `train.own.every`-th step, and the first one of a start, the model draws the images of the batch at
hand, after the teacher's texts (`sampling.packed`). They are kept for the next `train.own.keep` trajectories,
by what a trajectory holds. In every batch a share `train.own.share` of the images whose trajectories are kept
is shown as the model drew it: later tokens see that one, the flow target stays the teacher's.

What the teacher says of an image need not hold of another one. So of the chosen images what is said, and what
follows from it, is not learned; of those that the teacher planted an error in neither, which are never
replaced: else more of the images that are inspected would be wrong ones.

The meter: whenever images are drawn, the losses of their batch with all right images of the teacher in
context, and with all of them drawn by the model, on the same noise and the same labels.

What is kept is not saved: a run that goes on begins with nothing, and draws anew.

B rows of this host, S turn slots, R trajectories of a row.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from process_gen.data.buckets import Size
from process_gen.distributed import sharding
from process_gen.losses.registry import STAGES
from process_gen.models import autoencoder, partition
from process_gen.sampling.packed import draw_rows
from process_gen.training.program import TrainProgram
from process_gen.training.step import TrainState
from process_gen.trajectory.batch import LATENTS, Batch

Arrays = dict[str, Any]
_DRAWN, _CHOSEN = 1, 2
"""What draws random numbers, folded with the seed and the step."""


class _Place(NamedTuple):
    """Where a trajectory stands in a batch: its row, its turn slots, and what names it."""

    row: int
    slots: np.ndarray
    name: bytes


class OwnStates:
    """The images that the model has drawn, and the batches that show them.

    Args:
      config: of the run.
      programs: by image size.
      mesh: the devices.
      rows: of the global batch, that this host loads.
    """

    def __init__(
        self, config: ConfigDict, programs: Mapping[Size, TrainProgram], mesh: Mesh, rows: Sequence[int]
    ):
        self._own, self._seed, self._batch_size = config.train.own, config.seed, config.train.batch_size
        self._programs, self._mesh, self._rows = programs, mesh, rows
        flow = (config.sampling.flow_steps, config.sampling.time_shift)
        self._draw = {size: _drawing(program, mesh, *flow) for size, program in programs.items()}
        self._kept: collections.OrderedDict[bytes, Arrays] = collections.OrderedDict()
        self._begun = False  # with it all programs are compiled at the first step

    def fed(self, step: int, state: TrainState, batch: Arrays) -> tuple[Arrays, dict[str, float]]:
        """The batch of a step as it is to be trained on, and the meter; all hosts call this.

        Args:
          step: counted from 1.
          state: before the step.
          batch: fields of a `Batch`, the rows of this host.

        Returns:
          The batch with `shown` and `unjudged`; and where images were drawn `context_teacher/<name>` and
          `context_own/<name>`, with the names of the loss table, of the same tokens.
        """
        places, found = [*_places(batch)], {}
        if step % self._own.every == 0 or not self._begun:
            self._begun = True
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self._seed), _DRAWN), step)
            self._keep(places, self._drawn(state, self._shown(batch, places), key))
            found = self._meter(step, state, batch, places, key)
        chosen = [
            np.random.default_rng((self._seed, _CHOSEN, step, row)).random(batch["present"].shape[1])
            for row in self._rows
        ]
        return self._shown(batch, places, np.stack(chosen) < self._own.share), found

    def _drawn(self, state: TrainState, batch: Arrays, key: jax.Array) -> Arrays:
        """`shown` [B, S, H, W, 3] and, of a batch with latents, `shown_latents`, as the model draws them."""
        _, placed = self._placed(batch)
        draw = self._draw[batch["image"].shape[-3:-1]]
        found = draw(state.params, state.autoencoder, placed, key)
        return {name: sharding.held_rows(x) for name, x in found.items()}

    def _placed(self, batch: Arrays) -> tuple[TrainProgram, Batch]:
        rows = sharding.shard_batch(Batch(**batch), self._mesh, self._batch_size)
        return self._programs[batch["image"].shape[-3:-1]], rows

    def _keep(self, places: Sequence[_Place], drawn: Arrays) -> None:
        """Keeps what was drawn, and forgets what was drawn longest ago."""
        for row, slots, name in places:
            self._kept[name] = {field: x[row, slots] for field, x in drawn.items()}
            self._kept.move_to_end(name)
        while len(self._kept) > self._own.keep:
            self._kept.popitem(last=False)

    def _shown(self, batch: Arrays, places: Sequence[_Place], chosen: np.ndarray | None = None) -> Arrays:
        """The batch with the images that are kept in its context: those that are `chosen` [B, S], or all.

        With all of them, what is said of images that stay the teacher's keeps its labels.
        """
        right = batch["has_image"] & (batch["target"] == 0)
        shown = {"shown": batch["image"].copy(), "unjudged": np.zeros_like(right)}
        if "image_latents" in batch:
            shown["shown_latents"] = batch["image_latents"].copy()
        for row, slots, name in places:
            if (kept := self._kept.get(name)) is None:
                continue
            some = (
                right[row, slots] if chosen is None else chosen[row, slots] & batch["has_image"][row, slots]
            )
            shown["unjudged"][row, slots] = some
            some &= right[row, slots]
            for field, images in kept.items():
                shown[field][row, slots[some]] = images[some]
        return batch | shown

    def _meter(
        self, step: int, state: TrainState, batch: Arrays, places: Sequence[_Place], key: jax.Array
    ) -> dict[str, float]:
        """The losses of a batch under both contexts, of the tokens that have a label under both.

        What no token of the batch counts in is left out.
        """
        own = self._shown(batch, places)
        given = {"shown": batch["image"]}
        if "image_latents" in batch:
            given["shown_latents"] = batch["image_latents"]
        table, found = self._programs[batch["image"].shape[-3:-1]].recipe.losses, {}
        for context, arrays in (("teacher", own | given), ("own", own)):
            program, placed = self._placed(arrays)
            sums, counts = jax.device_get(program.losses(state.params, state.given, placed, key))
            counted = [row for row in table.rows if counts[row.name] > 0]
            names = {f"loss/{row.name}" for row in counted} | {f"stage/{row.stage}" for row in counted}
            metrics = table.metrics(sums, counts, step - 1)
            found |= {f"context_{context}/{name}": float(metrics[name]) for name in names & metrics.keys()}
        _tell(step, found)
        return found


def _tell(step: int, found: Mapping[str, float]) -> None:
    """A line in the log, with every stage under both contexts."""
    pairs = {stage: [found.get(f"context_{c}/stage/{stage}") for c in ("teacher", "own")] for stage in STAGES}
    shown = (f"{stage} {a:.3f} -> {b:.3f}" for stage, (a, b) in pairs.items() if a is not None)
    logging.info("step %d  from the teacher's images to its own  %s", step, "  ".join(shown))


def own_states(
    config: ConfigDict, programs: Mapping[Size, TrainProgram], mesh: Mesh, rows: Sequence[int]
) -> OwnStates | None:
    """`OwnStates`, or None where `config.train.own` has a share of 0."""
    return OwnStates(config, programs, mesh, rows) if config.train.own.share else None


def _drawing(program: TrainProgram, mesh: Mesh, flow_steps: int, time_shift: float) -> Any:
    """Jitted: (parameters, autoencoder, batch, key) -> images of all turns, [B, S, ...] by field."""
    model, order = program.recipe.model, program.recipe.options.order
    encoded = program.spec.shown_latents is not None

    def draw(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        latents = draw_rows(model, params, batch, key, flow_steps, time_shift, order, frozen)

        def images(latents: jax.Array) -> jax.Array:
            return autoencoder.to_images(model.config, model.layout, latents, frozen)

        shown = jnp.moveaxis(jax.lax.map(images, jnp.moveaxis(latents, 1, 0)), 0, 1)
        found = {"shown": shown}
        if encoded:  # of the pixels, as the sampler reads them
            tokens = autoencoder.slots_to_tokens(model.config, shown, frozen)
            found["shown_latents"] = tokens.astype(LATENTS)
        return found

    placed = partition.over(mesh, sharding.ACTIVATION_RULES)(draw)
    return jax.jit(placed, out_shardings=sharding.batch_sharding(mesh))


_OF_TURNS = ("before_tokens", "after_tokens", "image", "image_latents")
_OF_PROMPTS = ("prompt_tokens", "instruction_tokens", "prompt_image", "prompt_latents")
"""Fields of turns, and of prompts, that together name a trajectory, or a part of one."""


def _places(batch: Arrays) -> Iterator[_Place]:
    """The trajectories of a batch."""
    for row, present in enumerate(batch["present"]):
        for prompt in range(batch["prompt_tokens"].shape[1]):
            slots = np.flatnonzero(present & (batch["prompt_index"][row] == prompt))
            if len(slots):
                name = hashlib.blake2b(digest_size=16)
                for fields, at in ((_OF_PROMPTS, prompt), (_OF_TURNS, slots)):
                    for field in fields:
                        if field in batch:
                            name.update(np.ascontiguousarray(batch[field][row, at]))
                yield _Place(row, slots, name.digest())
