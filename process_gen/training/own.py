"""Training on self-generated context: the model sees images of its own in place of the teacher's.

At the first batch of a start and every `train.own.every`-th one from there, counted for each image size, the
model draws the images of the current batch, after the teacher's texts (`sampling.packed`). Each host caches
those of the newest `train.own.keep` trajectories, by a hash of their content. In every batch, of the images
whose trajectories are cached, a share `train.own.share` is replaced by the model's: later tokens see that
one, the flow target stays the teacher's.

The teacher's inspection of an image may be wrong for another one. So the inspections of the chosen images,
and the decisions after them, get no loss. Images with a planted error are chosen too, but never replaced:
else the share of wrong images among those with inspection losses would change. An image that shows what a
wrong plan says has no error of its own, and is replaced.

Whenever images are drawn, the losses of their batch are measured twice, with the same noise and labels: with
the teacher's images as context, and with the model's in place of all right ones. The share of images that
were replaced since the last time is measured too.

Drawing waits for the step before, and the next step for the drawing: they need the same devices and the same
parameters, so doing both at once would gain nothing. To draw on other devices, run `process_gen.sample` on
checkpoints, and train on a mixture of sources.

The cache is not saved: a resumed run starts with an empty one, and draws anew.

B rows of this host, S turn slots, R trajectories of a row.
"""

from __future__ import annotations

import collections
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from process_gen.data.buckets import Size, size_of
from process_gen.distributed import sharding
from process_gen.losses.registry import STAGES
from process_gen.models import autoencoder
from process_gen.sampling.packed import draw_rows
from process_gen.training import scoring
from process_gen.training.program import TrainProgram
from process_gen.training.step import TrainState
from process_gen.trajectory.batch import LATENTS, Batch

Arrays = dict[str, Any]
_DRAWN, _CHOSEN = 1, 2
"""Random streams, for drawing images and for choosing them; combined with the seed and the step."""


_Place = tuple[int, np.ndarray, bytes]
"""Where a trajectory is in a batch: its row and its turn slots; and the hash of its content."""


class OwnStates:
    """Draws and caches images of the model's own, and puts them into batches.

    `rows` are the indices in the global batch of the rows that this host loads; `drawings` are those of
    `drawings_of`, made here by default.
    """

    def __init__(
        self,
        config: ConfigDict,
        programs: Mapping[Size, TrainProgram],
        rows: Sequence[int],
        drawings: Mapping[Size, Any] | None = None,
    ):
        self._own, self._seed, self._programs, self._rows = config.train.own, config.seed, programs, rows
        self._draw = dict(drawings or drawings_of(config, programs))
        self._score = {size: program.losses for size, program in programs.items()}
        self._kept: collections.OrderedDict[bytes, Arrays] = collections.OrderedDict()
        self._fed: collections.Counter[Size] = collections.Counter()
        self._replaced, self._seen = 0, 0  # images, since the last measurement

    def compile(self) -> None:
        """Compiles drawing and measuring for every image size; logs the most memory that the cache takes."""
        for size, program in self._programs.items():
            state, batch = program.abstract
            key = jax.eval_shape(lambda: jax.random.key(0))
            self._draw[size] = self._draw[size].lower(state.params, state.autoencoder, batch, key).compile()
            self._score[size] = self._score[size].lower(state.params, state.given, batch, key).compile()
        spec = max((program.spec for program in self._programs.values()), key=_turn_bytes)
        most = self._own.keep * spec.present.shape[1] * _turn_bytes(spec)
        logging.info("train.own.keep=%d holds at most %.1f GB of host memory", self._own.keep, most / 1e9)

    def due(self, batch: Arrays) -> bool:
        """Whether to draw the images of a batch before it is trained on."""
        return self._fed[size_of(batch["image"])] % self._own.every == 0

    def draw(self, step: int, state: TrainState, batch: Arrays) -> None:
        """Draws the images of the batch of a step, this host's rows, into the cache; all hosts call this."""
        places, size = [*_places(batch)], size_of(batch["image"])
        rows = self._programs[size].placed(self._shown(batch, places, _right(batch))[0])
        found = self._draw[size](state.params, state.autoencoder, rows, self._key(step))
        drawn = {name: sharding.held_rows(x) for name, x in found.items()}
        for row, slots, name in places:
            self._kept[name] = {field: x[row, slots] for field, x in drawn.items()}
            self._kept.move_to_end(name)
        while len(self._kept) > self._own.keep:
            self._kept.popitem(last=False)

    def fed(self, step: int, batch: Arrays) -> Arrays:
        """The batch to train on at a step: with `shown` and `unjudged`, and cached images for a share."""
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

    def _shown(self, batch: Arrays, places: Sequence[_Place], chosen: np.ndarray) -> tuple[Arrays, int]:
        """Puts cached images into the context in place of those `chosen`, [B, S] bool, that are right.

        Returns the batch with `shown` and `unjudged`, and how many images were replaced.
        """
        right, replaced = _right(batch), 0
        shown = {"shown": batch["image"].copy(), "unjudged": np.zeros_like(right)}
        if "image_latents" in batch:
            shown["shown_latents"] = batch["image_latents"].copy()
        for row, slots, name in places:
            if (kept := self._kept.get(name)) is None:
                continue
            some = chosen[row, slots] & batch["has_image"][row, slots]
            shown["unjudged"][row, slots] = some
            some &= right[row, slots]
            for field, images in kept.items():
                shown[field][row, slots[some]] = images[some]
            replaced += int(some.sum())
        return batch | shown, replaced

    def measure(self, step: int, state: TrainState, batch: Arrays) -> dict[str, float]:
        """Losses of a batch with the teacher's and with cached images as context; all hosts call this.

        Returns:
          `context_teacher/<name>` and `context_own/<name>`, with the names of the loss table, over the tokens
          that have a label in both contexts; losses without any are left out. `context_own/share`: of this
          host's images since the last measurement, the share that was replaced; left out at the first.
        """
        own, _ = self._shown(batch, [*_places(batch)], _right(batch))
        given = {"shown": batch["image"]}
        if "image_latents" in batch:
            given["shown_latents"] = batch["image_latents"]
        size, found = size_of(batch["image"]), {}
        program, score = self._programs[size], self._score[size]
        table = program.recipe.losses
        for context, arrays in (("teacher", own | given), ("own", own)):
            scored = score(state.params, state.given, program.placed(arrays), self._key(step))
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


def _right(batch: Arrays) -> np.ndarray:
    """[B, S] bool: the images that are as they should be."""
    return batch["has_image"] & (batch["target"] == 0)


def _tell(step: int, found: Mapping[str, float]) -> None:
    """Logs the loss of every stage under both contexts in one line."""
    pairs = {stage: [found.get(f"context_{c}/stage/{stage}") for c in ("teacher", "own")] for stage in STAGES}
    shown = (f"{stage} {a:.3f} -> {b:.3f}" for stage, (a, b) in pairs.items() if a is not None)
    share = found.get("context_own/share")
    told = "" if share is None else f"  {share:.0%} of the images were its own;"
    logging.info("step %d%s  from the teacher's images to its own  %s", step, told, "  ".join(shown))


def _turn_bytes(spec: Batch) -> int:
    """Bytes that a turn takes in the cache."""
    kept = [x for x in (spec.shown, spec.shown_latents) if x is not None]
    return sum(math.prod(x.shape[2:]) * x.dtype.itemsize for x in kept)


def drawings_of(config: ConfigDict, programs: Mapping[Size, TrainProgram]) -> dict[Size, Any]:
    """Makes the functions that draw the images of a batch, by image size.

    Jitted: (parameters, autoencoder, batch, key) -> `shown` [B, S, H, W, 3] and, of a batch with latents,
    `shown_latents`: the model's images of all turns. They draw one micro-batch at a time.
    """
    flow = (config.sampling.flow_steps, config.sampling.time_shift)
    return {size: _drawing(program, *flow) for size, program in programs.items()}


def _drawing(program: TrainProgram, flow_steps: int, time_shift: float) -> Any:
    recipe, encoded = program.recipe, program.spec.shown_latents is not None
    model, order = recipe.model, recipe.options.order

    def draw(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        latents = draw_rows(model, params, batch, key, flow_steps, time_shift, order, frozen)

        def images(latents: jax.Array) -> jax.Array:
            return autoencoder.to_images(model.config, model.layout, latents, frozen)

        shown = jnp.moveaxis(jax.lax.map(images, jnp.moveaxis(latents, 1, 0)), 0, 1)
        found = {"shown": shown}
        if encoded:  # of the decoded pixels, as in the sampler
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

    return program.jit(draw_in_parts, out_shardings=sharding.batch_sharding(program.mesh))


_OF_TURNS = ("before_tokens", "after_tokens", "image", "image_latents")
_OF_PROMPTS = ("prompt_tokens", "instruction_tokens", "prompt_image", "prompt_latents")
"""Fields of turns and of prompts that are hashed to identify a trajectory, or a part of one."""


def _places(batch: Arrays) -> Iterator[_Place]:
    """Finds the trajectories of a batch, and hashes the content of each."""
    for row, present in enumerate(batch["present"]):
        for prompt in range(batch["prompt_tokens"].shape[1]):
            slots = np.flatnonzero(present & (batch["prompt_index"][row] == prompt))
            if len(slots):
                name = hashlib.blake2b(digest_size=16)
                for fields, at in ((_OF_PROMPTS, prompt), (_OF_TURNS, slots)):
                    for field in fields:
                        if field in batch:
                            name.update(np.ascontiguousarray(batch[field][row, at]))
                yield row, slots, name.digest()
