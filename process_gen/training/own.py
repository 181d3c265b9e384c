"""Training on self-generated context: the model sees images of its own in place of the teacher's.

At the first batch of a start and every `train.own.every`-th one from there, counted for each image size, the
model draws the images of the batch at hand, after the teacher's texts (`sampling.packed`). They are kept for
the next `train.own.keep` trajectories, by what a trajectory holds. In every batch a share `train.own.share`
of the images whose trajectories are kept is shown as the model drew it: later tokens see that one, the flow
target stays the teacher's.

What the teacher says of an image need not hold of another one. So the inspections of the chosen images, and
the decisions after them, get no loss. Images with a planted error are chosen too, but never replaced: else
the share of wrong images among those that are inspected would change. An image that shows what a wrong plan
says has no error of its own, and is replaced.

The meter: whenever images are drawn, the losses of their batch with all right images of the teacher in
context, and with all of them drawn by the model, on the same noise and the same labels; and which share of
the images has been replaced since the last time.

Drawing waits for the step before, and the next step for the drawing: they need the same devices and the same
parameters, so nothing would be won by doing both at once. On devices of their own, draw by
`process_gen.sample` from checkpoints, and train on a mixture of sources.

What is kept is not saved: a run that goes on begins with nothing, and draws anew.

B rows of this host, S turn slots, R trajectories of a row.
"""

from __future__ import annotations

import collections
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from process_gen.data.buckets import Size, size_of
from process_gen.distributed import sharding
from process_gen.losses.registry import STAGES
from process_gen.models import autoencoder, partition
from process_gen.sampling.packed import draw_rows
from process_gen.training import scoring
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
      programs: by image size.
      rows: of the global batch, that this host loads.
      drawings: of `drawings_of`; made here by default.
    """

    def __init__(
        self,
        config: ConfigDict,
        programs: Mapping[Size, TrainProgram],
        mesh: Mesh,
        rows: Sequence[int],
        drawings: Mapping[Size, Any] | None = None,
    ):
        self._own, self._seed, self._batch_size = config.train.own, config.seed, config.train.batch_size
        self._programs, self._mesh, self._rows = programs, mesh, rows
        self._draw = dict(drawings or drawings_of(config, programs, mesh))
        self._score = {size: program.losses for size, program in programs.items()}
        self._kept: collections.OrderedDict[bytes, Arrays] = collections.OrderedDict()
        self._fed: collections.Counter[Size] = collections.Counter()
        self._replaced, self._seen = 0, 0  # images, since the last measurement

    def compile(self) -> None:
        """Compiles what draws and what measures, for every image size; logs the memory of what is kept."""
        for size, program in self._programs.items():
            state, batch = program.abstract
            key = jax.eval_shape(lambda: jax.random.key(0))
            self._draw[size] = self._draw[size].lower(state.params, state.autoencoder, batch, key).compile()
            self._score[size] = self._score[size].lower(state.params, state.given, batch, key).compile()
        spec = max((program.spec for program in self._programs.values()), key=_turn_bytes)
        most = self._own.keep * spec.present.shape[1] * _turn_bytes(spec)
        logging.info("train.own.keep=%d holds at most %.1f GB of host memory", self._own.keep, most / 1e9)

    def due(self, batch: Arrays) -> bool:
        """Whether the images of a batch are to be drawn before it is fed."""
        return self._fed[size_of(batch["image"])] % self._own.every == 0

    def draw(self, step: int, state: TrainState, batch: Arrays) -> None:
        """Draws the images of a batch, and keeps them; all hosts call this.

        Args:
          step: that the batch is for, counted from 1.
          state: before the step.
          batch: fields of a `Batch`, the rows of this host.
        """
        places = [*_places(batch)]
        rows = self._placed(self._shown(batch, places)[0])
        found = self._draw[size_of(batch["image"])](state.params, state.autoencoder, rows, self._key(step))
        self._keep(places, {name: sharding.held_rows(x) for name, x in found.items()})

    def fed(self, step: int, batch: Arrays) -> Arrays:
        """The batch of a step as it is to be trained on: with `shown` and `unjudged`."""
        self._fed[size_of(batch["image"])] += 1
        chosen = [
            np.random.default_rng((self._seed, _CHOSEN, step, row)).random(batch["present"].shape[1])
            for row in self._rows
        ]
        fed, replaced = self._shown(batch, [*_places(batch)], np.stack(chosen) < self._own.share)
        self._replaced += replaced
        self._seen += int(batch["has_image"].sum())
        return fed

    def _key(self, step: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self._seed), _DRAWN), step)

    def _placed(self, batch: Arrays) -> Batch:
        return sharding.shard_batch(Batch(**batch), self._mesh, self._batch_size)

    def _keep(self, places: Sequence[_Place], drawn: Arrays) -> None:
        """Keeps what was drawn, and forgets what was drawn longest ago."""
        for row, slots, name in places:
            self._kept[name] = {field: x[row, slots] for field, x in drawn.items()}
            self._kept.move_to_end(name)
        while len(self._kept) > self._own.keep:
            self._kept.popitem(last=False)

    def _shown(
        self, batch: Arrays, places: Sequence[_Place], chosen: np.ndarray | None = None
    ) -> tuple[Arrays, int]:
        """The batch with the images that are kept in its context: those that are `chosen` [B, S], or all.

        With all of them, what is said of images that stay the teacher's keeps its labels. Also how many
        images were replaced.
        """
        replaced = 0
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
            replaced += int(some.sum())
        return batch | shown, replaced

    def measure(self, step: int, state: TrainState, batch: Arrays) -> dict[str, float]:
        """The losses of a batch whose images are drawn, under both contexts; all hosts call this.

        Returns:
          `context_teacher/<name>` and `context_own/<name>`, with the names of the loss table, of the tokens
          that have a label under both. What no token of the batch counts in is left out. `context_own/share`
          of the images that this host has fed since the last measurement were the model's own; it is left
          out at the first.
        """
        own, _ = self._shown(batch, [*_places(batch)])
        given = {"shown": batch["image"]}
        if "image_latents" in batch:
            given["shown_latents"] = batch["image_latents"]
        size, found = size_of(batch["image"]), {}
        table, score = self._programs[size].recipe.losses, self._score[size]
        for context, arrays in (("teacher", own | given), ("own", own)):
            scored = score(state.params, state.given, self._placed(arrays), self._key(step))
            sums, counts = jax.device_get(scored)
            counted = [row for row in table.rows if counts[row.name] > 0]
            names = {f"loss/{row.name}" for row in counted} | {f"stage/{row.stage}" for row in counted}
            metrics = table.metrics(sums, counts, step - 1)
            found |= {f"context_{context}/{name}": float(metrics[name]) for name in names & metrics.keys()}
        if self._seen:
            found["context_own/share"] = self._replaced / self._seen
            self._replaced, self._seen = 0, 0
        _tell(step, found)
        return found


def _tell(step: int, found: Mapping[str, float]) -> None:
    """A line in the log, with every stage under both contexts."""
    pairs = {stage: [found.get(f"context_{c}/stage/{stage}") for c in ("teacher", "own")] for stage in STAGES}
    shown = (f"{stage} {a:.3f} -> {b:.3f}" for stage, (a, b) in pairs.items() if a is not None)
    share = found.get("context_own/share")
    told = "" if share is None else f"  {share:.0%} of the images were its own;"
    logging.info("step %d%s  from the teacher's images to its own  %s", step, told, "  ".join(shown))


def _turn_bytes(spec: Batch) -> int:
    """Of what is kept of a turn."""
    kept = [x for x in (spec.shown, spec.shown_latents) if x is not None]
    return sum(math.prod(x.shape[2:]) * x.dtype.itemsize for x in kept)


def drawings_of(config: ConfigDict, programs: Mapping[Size, TrainProgram], mesh: Mesh) -> dict[Size, Any]:
    """What draws the images of a batch, by image size.

    Jitted: (parameters, autoencoder, batch, key) -> `shown` [B, S, H, W, 3] and, of a batch with latents,
    `shown_latents`, of all turns as the model draws them. A micro-batch is drawn at a time.
    """
    flow = (config.sampling.flow_steps, config.sampling.time_shift)
    return {size: _drawing(program, mesh, *flow) for size, program in programs.items()}


def _drawing(program: TrainProgram, mesh: Mesh, flow_steps: int, time_shift: float) -> Any:
    recipe, encoded = program.recipe, program.spec.shown_latents is not None
    model, order = recipe.model, recipe.options.order

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

    def draw_in_parts(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        if recipe.accumulate == 1:
            return draw(params, frozen, batch, key)
        micro = scoring.micro_batches(recipe, batch, key)
        found = jax.lax.map(lambda part: draw(params, frozen, *part), micro)
        # [parts, B / parts, ...] to [B, ...], rows in their order: the inverse of `micro_batches`.
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), found)

    placed = partition.over(mesh, sharding.ACTIVATION_RULES)(draw_in_parts)
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
