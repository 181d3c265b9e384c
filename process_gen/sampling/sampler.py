"""The interleaved sampler, with continuous batching of trajectories.

A fixed number of rows goes through turns together: a text, an image, a text. One row
may draft while another corrects, in the same compiled functions; a part that no row
needs is skipped. Between turns a row whose trajectory has ended takes the next waiting
prompt, so that short trajectories never wait for long ones and shapes never change. A
trajectory depends on its prompt and its seed, not on the other rows.

On a CPU the rows are split into lanes, smaller batches that run in a thread each: one
program alone leaves most cores idle.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

from process_gen.models import vit
from process_gen.models.unified import UnifiedModel
from process_gen.sampling import turn
from process_gen.sampling.asking import Asking, Slots
from process_gen.sampling.config import PromptError, SamplerConfig, SamplerError, check_fits
from process_gen.sampling.decisions import NOTHING, Opens
from process_gen.sampling.outside import Inspector, Outside, Planner
from process_gen.sampling.prompts import (
    check_prompts,
    encode_prompt,
    encode_text,
    encode_turn,
    idle_slots,
    make_prompt,
)
from process_gen.sampling.rows import Finished, Lost, Progress, Row, continued_row, in_order, occupied
from process_gen.sampling.state import SamplingState
from process_gen.sampling.text import text_specs
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Trajectory

Seeds = int | Sequence[int] | None
"""One seed for all prompts, one for each, or the config's."""

Images = Sequence[np.ndarray | None] | None
"""Input images of prompts, [H, W, 3] uint8 of the layout's size, None where a prompt has none."""

LANE = 8
"""Least number of rows in a lane."""


@dataclasses.dataclass(eq=False, repr=False)
class Sampler:
    """Draws prompts with a model. Samplers with an equal model and config share their compiled programs.

    Attributes:
      tokenizer: see `process_gen.data.tokenizers.Tokenizer`.
      config: how to sample.
      rows: trajectories at once, the batch size. Fewer prompts than rows of a lane cost as much as a lane.
      sharding: of arrays whose first axis is the batch, if the rows are to be split over a mesh.
      frozen: weights of an autoencoder that has any.
      ambient: makes the context in which programs are traced and run: `partition.on_mesh` a mesh, where the
        parameters are sharded over one.
      outside: external planner and inspector.

    Raises:
      SamplerError: settings that do not fit the model.
    """

    model: UnifiedModel
    params: Any
    tokenizer: Any
    config: SamplerConfig = SamplerConfig()
    rows: int = 32
    sharding: jax.sharding.Sharding | None = None
    frozen: Any = None
    ambient: Callable[[], AbstractContextManager[None]] = nullcontext
    outside: Outside = Outside()

    def __post_init__(self):
        self.model = turn.for_sampling(self.model)
        self.params, self.frozen = jax.device_put((self.params, self.frozen))
        if self.rows < 1:
            raise SamplerError(f"rows must be at least 1, got {self.rows}")
        one_cpu = jax.default_backend() == "cpu" and (self.sharding is None or self.sharding.num_devices == 1)
        self.lanes = min(os.cpu_count() or 1, max(self.rows // LANE, 1)) if one_cpu else 1
        check_fits(self.model.layout, self.config)
        self._texts = text_specs(self.model, self.tokenizer, self.config)
        self._asking = Asking(self.model, self.tokenizer, self.config, self.outside)

    def with_config(self, **changes: Any) -> Sampler:
        """The same model with other settings."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    def with_outside(self, planner: Planner | None = None, inspector: Inspector | None = None) -> Sampler:
        """The same sampler with an external planner or inspector (`sampling.outside`)."""
        return dataclasses.replace(self, outside=Outside(planner, inspector))

    def with_shape(self, image_size: tuple[int, int], vit_grid: tuple[int, int] | None = None) -> Sampler:
        """The same model for images of another size, (height, width) in pixels; compiled separately.

        Without a `vit_grid`, images have at most as many ViT tokens as before.

        Raises:
          ValueError: the model cannot hold such images.
        """
        layout = vit.reshaped(self.model.config, self.model.layout, image_size, vit_grid)
        return dataclasses.replace(self, model=self.model.clone(layout=layout))

    # ---------------------------------------------------------------- interface

    def sample(
        self, prompts: Sequence[str], seed: Seeds = None, images: Images = None
    ) -> list[SampledTrajectory]:
        """One trajectory per prompt, in the order of the prompts.

        Args:
          prompts: one may occur several times; then give a seed for each.
          seed: one for all prompts, or one per prompt; the config's by default.
          images: input images, one per prompt.

        Raises:
          PromptError: a prompt is empty or too long, a seed is out of range, or an image does not fit.
        """
        return in_order(self.stream(prompts, seed, images), len(prompts))

    def check(self, prompts: Sequence[str]) -> None:
        """Checks prompts before anything is drawn.

        Raises:
          PromptError: one is empty, too long, or holds a forbidden token.
        """
        check_prompts(self.model, self.tokenizer, prompts)

    def stream(self, prompts: Sequence[str], seed: Seeds = None, images: Images = None) -> Iterator[Progress]:
        """Draws prompts and yields after every round of turns; see `sample`."""
        return self._draw(self._new_rows(prompts, seed, images))

    def continue_from(
        self,
        trajectory: Trajectory | Sequence[Trajectory],
        turns: int | Sequence[int],
        prompt: str | Sequence[str] | None = None,
        seed: Seeds = None,
    ) -> SampledTrajectory | list[SampledTrajectory]:
        """Continues trajectories after some of their first turns.

        Kept turns are read unchanged: to edit a text or an image, replace it first
        (`dataclasses.replace`). Where the last kept turn has no text after its image,
        the model decides there what follows.

        Args:
          trajectory: one, or several that are drawn side by side; of the data or sampled.
          turns: how many of their first turns are kept, 0 for the prompt alone; one number, or one for each.
          prompt: other texts for their prompts, one for all or one for each.
          seed: as in `sample`; that of a sampled trajectory by default, else the config's. With the same
            seed and turns a sampled trajectory ends as it did, unless a text has other tokens when it is
            encoded again.

        Returns:
          A sampled trajectory for each, a single one for one; its first `given` turns are the kept ones.

        Raises:
          PromptError: there are not so many turns, or what is kept does not fit the model.
        """
        if isinstance(trajectory, Trajectory):
            return self.continue_from([trajectory], turns, prompt, seed)[0]
        sources = list(trajectory)
        kept = [turns] * len(sources) if isinstance(turns, int) else list(turns)
        texts = [prompt] * len(sources) if prompt is None or isinstance(prompt, str) else list(prompt)
        if seed is None:
            seed = [getattr(one, "seed", self.config.seed) for one in sources]
        seeds = self._seeds(len(sources), seed)
        if not len(sources) == len(kept) == len(texts):
            raise PromptError(
                f"{len(sources)} trajectories, {len(kept)} numbers of turns and {len(texts)} prompts: "
                "give one for each, or one for all"
            )
        args = enumerate(zip(sources, kept, texts, seeds, strict=True))
        rows = [continued_row(self.model, self.tokenizer, self.config, i, *one) for i, one in args]
        return in_order(self._draw(rows), len(rows))

    def answer(self, prompts: Sequence[str], seed: Seeds = None, images: Images = None) -> list[str]:
        """Answers each prompt in words instead of drawing it; its input image is what it asks about.

        Raises:
          PromptError: see `sample`.
        """
        waiting, answers = self._new_rows(prompts, seed, images), []
        while waiting:
            asked, waiting = waiting[: self.rows], waiting[self.rows :]
            rows = [*asked, *[None] * (self.rows - len(asked))]
            with self.ambient():
                encoded = self._prompts(rows, occupied(rows))
                prompt, position, _ = turn.prefill(self.model, self.params, encoded)
                args = (prompt, position, self._put(occupied(rows)), self._turn_keys(rows))
                tokens = turn.answer(self.model, self._texts["answer"], self.params, *args)
            answers += [self.tokenizer.decode(ids.tolist()) for ids in jax.device_get(tokens)[: len(asked)]]
        return answers

    def _new_rows(self, prompts: Sequence[str], seed: Seeds, images: Images) -> list[Row]:
        """A new row for every prompt; raises PromptError before any work."""
        seeds = self._seeds(len(prompts), seed)
        images = [None] * len(prompts) if images is None else images
        if len(images) != len(prompts):
            raise PromptError(
                f"{len(prompts)} prompts and {len(images)} images: give one per prompt, or None"
            )
        made = [make_prompt(self.model, *pair) for pair in zip(prompts, images, strict=True)]
        for prompt in made:
            encode_prompt(self.model, self.tokenizer, prompt)
        return [Row(i, *pair) for i, pair in enumerate(zip(made, seeds, strict=True))]

    def _seeds(self, count: int, seed: Seeds) -> list[int]:
        seeds = self.config.seed if seed is None else seed
        seeds = [int(seeds)] * count if np.ndim(seeds) == 0 else [int(s) for s in seeds]
        if len(seeds) != count:
            raise PromptError(f"{count} prompts and {len(seeds)} seeds: give one seed, or one per prompt")
        if bad := [s for s in seeds if not 0 <= s < 2**32]:
            raise PromptError(f"a seed is a whole number in [0, 2^32), got {bad[0]}")
        return seeds

    # ------------------------------------------------------------------ a round

    def _draw(self, rows: list[Row]) -> Iterator[Progress]:
        """Draws the trajectories of rows, and yields after every round of turns."""
        done, turns = 0, 0
        for drawn, finished, lost in self._rounds(rows[::-1]):
            done, turns = done + len(finished) + len(lost), turns + drawn
            yield Progress(done, len(rows), turns, finished, lost)

    def _rounds(self, waiting: list[Row]) -> Iterator[tuple[int, Finished, Lost]]:
        """Yields (turns drawn, what finished, what was given up) for every round; each lane is a thread."""
        if self.lanes == 1:
            yield from self._lane(waiting)
            return
        lanes = [self._lane(waiting) for _ in range(self.lanes)]
        with futures.ThreadPoolExecutor(self.lanes) as pool:
            running = {pool.submit(next, lane, None): lane for lane in lanes}
            while running:
                for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                    lane = running.pop(future)
                    if (drawn := future.result()) is not None:
                        running[pool.submit(next, lane, None)] = lane
                        yield drawn

    def _lane(self, waiting: list[Row]) -> Iterator[tuple[int, Finished, Lost]]:
        """Takes rows from the end of `waiting`, which lanes share, and draws them in a batch of its own."""
        rows: list[Row | None] = [None] * -(-self.rows // self.lanes)
        state: SamplingState | None = None
        while True:
            start, fresh = time.perf_counter(), np.zeros(len(rows), bool)
            for i in np.flatnonzero(~occupied(rows)):
                with contextlib.suppress(IndexError):  # another lane may have taken the last one
                    rows[i], fresh[i] = waiting.pop(), True
            if not occupied(rows).any():
                return
            with self.ambient():
                if fresh.any():
                    state = self._enter(state, rows, fresh)
                state = self._turn(state, rows)
            active, finished, lost = np.flatnonzero(occupied(rows)), [], []
            share = (time.perf_counter() - start) / len(active) / self.lanes
            for i in active:
                row = rows[i]
                row.seconds += share
                stopped = row.stopped(self.config)
                if row.lost:
                    lost.append((row.index, row.lost))
                elif stopped:
                    finished.append((row.index, row.trajectory(self.config, stopped)))
                if row.lost or stopped:
                    rows[i] = None
            yield len(active), tuple(finished), tuple(lost)

    def _turn(self, state: SamplingState, rows: Sequence[Row | None]) -> SamplingState:
        """One turn of every row that holds a trajectory; updates `rows`."""
        present, opens = occupied(rows), np.array([row.opens if row else NOTHING for row in rows])
        given = [self._given_slots(row) if row else {} for row in rows]
        refines, writes = opens == Opens.REFINE, np.isin(opens, (Opens.PLAN, Opens.REFINE))
        state = state.with_fields(refines=self._put(refines), keys=self._turn_keys(rows))
        texts: dict[str, jax.Array] = {}
        if writes.any():
            state, texts["before"], _ = self._write("before", state, writes, given)
        state, images, end = self._image(state, present, given)
        if self.outside.inspector:
            inspections = self._asking.inspect(rows, images, self._words(texts))
            given = [slots | inspections.get(i, {}) for i, slots in enumerate(given)]
        opens = self._decide("after_image", end, state, rows, present)
        if (inspects := opens == Opens.INSPECT).any():
            state, texts["after"], end = self._write("after", state, inspects, given)
            opens = np.where(inspects, self._decide("after_text", end, state, rows, inspects), opens)
        state = self._commit(state.with_fields(rows=self._put(present)))
        words = self._words(texts)
        for i in np.flatnonzero(present):
            rows[i].add(words[i], images[i], Opens(opens[i]))
        self._asking.plan(filter(None, rows))
        return state

    def _given_slots(self, row: Row) -> Slots:
        """What a row reads instead of drawing: a given turn, or a text of a planner or an inspector."""
        if row.given_turn is not None:
            return encode_turn(self.model, self.tokenizer, row.given_turn)
        if row.before is not None:
            return {"before": encode_text(self.model, self.tokenizer, row.before, "before")}
        return {}

    def _words(self, texts: dict[str, jax.Array]) -> dict[int, dict[str, str]]:
        """By row, the texts of a turn that it has, by name; `texts` are tokens [B, T]."""
        found = collections.defaultdict(dict)
        for name, tokens in jax.device_get(texts).items():
            for i in np.flatnonzero(tokens[:, 0] != PAD_ID):
                found[int(i)][name] = self.tokenizer.decode(tokens[i].tolist())
        return found

    def _write(
        self, part: str, state: SamplingState, rows: np.ndarray, given: Sequence[Slots]
    ) -> tuple[SamplingState, jax.Array, jax.Array]:
        """Decodes a text in some rows [B]: the new state, tokens [B, T], the last hidden state [B, D]."""
        spec = self._texts[part]
        blank = np.full(spec.size, PAD_ID, np.int32)
        texts = [blank if slots.get(part) is None else slots[part] for slots in given]
        state = state.with_fields(rows=self._put(rows))
        new = turn.decode_text(self.model, spec, part, self.params, state, self._put(np.stack(texts)))
        return state.extended(new), new.tokens, new.end

    def _image(
        self, state: SamplingState, rows: np.ndarray, given: Sequence[Slots]
    ) -> tuple[SamplingState, np.ndarray, jax.Array]:
        """Adds an image in some rows [B]: the new state, pixels, hidden state [B, D] of the closing token."""
        given_images = [slots.get("image") for slots in given]
        is_given = np.array([image is not None for image in given_images])
        state = state.with_fields(rows=self._put(rows))
        if (rows & ~is_given).any():
            latents = turn.sample_image(self.model, self.config.flow, self.params, state)
            shown = turn.decode_image(self.model, latents, self.frozen)
            images = jax.device_get(shown)
        else:
            images = np.zeros((len(rows), *self.model.layout.image_size, 3), np.uint8)
        if is_given.any():
            images = images.copy()
            images[is_given] = [image for image in given_images if image is not None]
            shown = self._put(images)
        latents, patches = turn.encode_image(self.model, shown, self.frozen)
        new = turn.append_image(self.model, self.params, latents, patches, state)
        return state.extended(new), images, new.end

    def _decide(
        self, stream: str, end: jax.Array, state: SamplingState, rows: Sequence[Row | None], asked: np.ndarray
    ) -> np.ndarray:
        """Decides what follows in the rows `asked` [B] bool: [B] of `Opens`, `NOTHING` elsewhere."""
        choices = [
            row.choices(stream, self.config, self.model.layout) if ask else frozenset()
            for row, ask in zip(rows, asked, strict=True)
        ]
        only = np.array([next(iter(some), NOTHING) for some in choices])
        several = np.array([len(some) > 1 for some in choices])
        if not several.any():  # the model need not be asked
            return only
        allowed = np.array([[one in some for one in Opens] for some in choices])
        settings = (self.config.decides_at, self.config.refine_threshold, stream)
        found = turn.decide(self.model, *settings, self.params, end, self._put(allowed), state.keys)
        decisions, probabilities = jax.device_get(found)
        for i in np.flatnonzero(several & allowed[:, Opens.REFINE]):
            rows[i].doubt = round(float(probabilities[i, Opens.REFINE]), 6)
        return np.where(several, decisions, only)

    def _commit(self, state: SamplingState) -> SamplingState:
        """Appends the current turn to the history, and empties it."""
        context = state.context.replace(position=state.position)
        context, mask = turn.commit(self.model, context, state.turn, state.rows, state.refines)
        texts = None if state.texts is None else self._commit(state.texts)
        empty = state.turn.replace(mask=mask)
        return state.replace(context=context, turn=empty, position=context.position, texts=texts)

    # ------------------------------------------------------- rows and their prompts

    def _enter(
        self, state: SamplingState | None, rows: Sequence[Row | None], fresh: np.ndarray
    ) -> SamplingState:
        """Prefills the prompts of the rows `fresh` into the state; sets their first decisions in `rows`."""
        prompts, fresh_rows = self._prompts(rows, fresh), self._put(fresh)
        prompt, position, end = turn.prefill(self.model, self.params, prompts)
        keys = self._turn_keys(rows)
        new = self._with_prompts(state, fresh_rows, keys, prompt, position)
        if "noimg" in self.config.flow.branches:
            if "has_image" in prompts:
                without = prompts | {"has_image": self._put(np.zeros_like(fresh))}
                prompt, position, _ = turn.prefill(self.model, self.params, without)
            texts = self._with_prompts(state and state.texts, fresh_rows, keys, prompt, position)
            new = new.replace(texts=texts)
        opens = self._decide("after_prompt", end, new, rows, fresh)
        for i in np.flatnonzero(fresh):
            rows[i].opens = Opens(opens[i])
        self._asking.plan(rows[i] for i in np.flatnonzero(fresh))
        return new

    def _with_prompts(
        self, state: SamplingState | None, fresh: jax.Array, keys: jax.Array, prompt: Any, position: jax.Array
    ) -> SamplingState:
        """The state with prefilled prompts in the rows `fresh`; a new state if there is none."""
        if state is None:
            context, empty = turn.new_context(self.model, prompt, position)
            return SamplingState(context, empty, context.position, fresh, fresh, keys)
        context = turn.enter(state.context, fresh, prompt, position)
        return state.replace(context=context, position=context.position, keys=keys)

    def _prompts(self, rows: Sequence[Row | None], fresh: np.ndarray) -> dict[str, jax.Array]:
        """The prompts of the rows `fresh`, as `turn.prefill` takes them."""
        idle = idle_slots(self.model)
        slots = [
            encode_prompt(self.model, self.tokenizer, row.prompt) if new else idle
            for row, new in zip(rows, fresh, strict=True)
        ]
        prompts = {name: self._put(np.stack([one[name] for one in slots])) for name in idle}
        if "images" in prompts:
            encoded = turn.encode_image(self.model, prompts.pop("images"), self.frozen)
            prompts["latents"], prompts["patches"] = encoded
        return prompts

    def _turn_keys(self, rows: Sequence[Row | None]) -> jax.Array:
        """The random keys [B] of each row's turn."""
        seeds = np.array([row.seed if row else 0 for row in rows], np.uint32)
        hashes = np.array([row.prompt.hash if row else 0 for row in rows], np.uint32)
        numbers = np.array([len(row.turns) if row else 0 for row in rows], np.int32)
        return turn.turn_keys(*map(self._put, (seeds, hashes, numbers)))

    def _put(self, x: np.ndarray) -> jax.Array:
        return jax.device_put(x, self.sharding)
