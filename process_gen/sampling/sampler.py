"""The interleaved sampler: many prompts at once, each deciding for itself.

    plan -> sketch -> inspect -> (refine) -> next step | stop

A fixed number of rows goes through the stages together. Between steps a row
whose trajectory has ended takes the next prompt that waits, so that short
trajectories never wait for long ones and nothing is compiled twice. What a
prompt becomes depends on the prompt and its seed, not on its neighbours.
"""

from __future__ import annotations

import copy
import dataclasses
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from process_gen.models.context import Context
from process_gen.models.unified import UnifiedModel
from process_gen.sampling import stages
from process_gen.sampling.config import PromptError, SamplerConfig, SamplerError
from process_gen.sampling.stages import Work
from process_gen.sampling.text import TextSpec
from process_gen.trajectory import markup
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.sampled import SampledStep, SampledTrajectory
from process_gen.trajectory.stages import Mode

Seeds = int | Sequence[int] | None
"""One seed for all prompts, one for each, or the config's."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after one round of steps.

    Attributes:
      done, total: trajectories finished and asked for.
      steps: steps drawn so far, over all trajectories.
      finished: (number of the prompt, its trajectory) for those that ended in this round.
    """

    done: int
    total: int
    steps: int
    finished: tuple[tuple[int, SampledTrajectory], ...]


@dataclasses.dataclass
class _Row:
    """A trajectory under way: the prompt's number, its seed, the steps so far, its share of the time."""

    index: int
    prompt: str
    seed: int
    steps: list[SampledStep] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


class Sampler:
    """Draws prompts with a model.

    Args:
      model: the modules.
      params: their parameters.
      tokenizer: see `process_gen.data.tokenizers.Tokenizer`.
      config: how to sample; the defaults of `SamplerConfig` if None.
      rows: trajectories under way at once. Fewer prompts than rows cost as much as `rows`.
      sharding: of arrays whose first axis is the batch, if the rows are to be spread over a mesh.

    Raises:
      SamplerError: settings that do not fit the model.
    """

    def __init__(
        self,
        model: UnifiedModel,
        params: Any,
        tokenizer: Any,
        config: SamplerConfig | None = None,
        rows: int = 32,
        sharding: jax.sharding.Sharding | None = None,
    ):
        self.model, self.params, self.tokenizer = model, jax.device_put(params), tokenizer
        self.config, self.rows, self.sharding = config or SamplerConfig(), rows, sharding
        self._check()
        ids = model.ids
        controls = tuple(sorted(tokenizer.reserved - {ids.im_end}))
        marks = tuple(tokenizer.encode(token)[0] for token in markup.MARKUP_TOKENS)

        def spec(slot, prefix, banned=()):
            size, temperature = getattr(model.layout, slot), self.config.temperature
            return TextSpec(
                size, (ids.im_start, *prefix), controls + banned, tokenizer.vocab_size, temperature
            )

        self._texts = {
            "plan": spec("plan", (ids.ins,)),
            "inspect": spec("inspect", (), marks),
            "refine": spec("refine", (ids.refine,)),
        }

    def with_params(self, params: Any) -> Sampler:
        """The same sampler with other weights; nothing is compiled again."""
        other = copy.copy(self)
        other.params = jax.device_put(params)
        return other

    def with_config(self, **changes: Any) -> Sampler:
        """The same model with other settings."""
        config = dataclasses.replace(self.config, **changes)
        return Sampler(self.model, self.params, self.tokenizer, config, self.rows, self.sharding)

    def encode(self, prompt: str) -> np.ndarray:
        """The prompt slot of a text, [layout.prompt] int32.

        Raises:
          PromptError: it is empty, or too long; the message says how many tokens fit.
        """
        if not prompt.strip():
            raise PromptError("the prompt is empty")
        ids, size = self.tokenizer.encode(prompt), self.model.layout.prompt
        if not ids:
            raise PromptError(f"the prompt {prompt!r} has no tokens")
        if len(ids) > size - 2:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, {size - 2} fit (layout.prompt = {size}, two of which are "
                f"brackets): {prompt[:60]!r}"
            )
        tokens = np.full(size, PAD_ID, np.int32)
        tokens[: len(ids) + 2] = [self.model.ids.im_start, *ids, self.model.ids.im_end]
        return tokens

    def sample(self, prompts: Sequence[str], seed: Seeds = None) -> list[SampledTrajectory]:
        """One trajectory per prompt, in the order of the prompts.

        Args:
          prompts: a prompt may stand there several times; give one seed for each then.
          seed: one for all prompts, or one per prompt; the config's by default.

        Raises:
          PromptError: a prompt is empty or too long, or a seed is out of range.
        """
        drawn: dict[int, SampledTrajectory] = {}
        for progress in self.stream(prompts, seed):
            drawn.update(progress.finished)
        return [drawn[i] for i in range(len(prompts))]

    def stream(self, prompts: Sequence[str], seed: Seeds = None) -> Iterator[Progress]:
        """Draws prompts and yields after every round of steps; see `sample`."""
        seeds = self._seeds(len(prompts), seed)
        for prompt in prompts:
            self.encode(prompt)  # complain before any work
        waiting = [_Row(i, prompt, seeds[i]) for i, prompt in enumerate(prompts)][::-1]
        rows: list[_Row | None] = [None] * self.rows
        context, keys, done, steps = None, None, 0, 0
        while done < len(prompts):
            start, fresh = time.perf_counter(), np.zeros(self.rows, bool)
            for place in np.flatnonzero(~_occupied(rows))[: len(waiting)]:
                rows[place], fresh[place] = waiting.pop(), True
            if fresh.any():
                context, keys = self._enter(context, rows, fresh), self._row_keys(rows)
            context, drawn, stops = self._step(context, rows, keys)
            active = np.flatnonzero(_occupied(rows))
            share, finished = (time.perf_counter() - start) / len(active), []
            for place in active:
                row = rows[place]
                row.steps.append(drawn[place])
                row.seconds += share
                if stops[place] or len(row.steps) == self._most_steps:
                    finished.append((row.index, self._trajectory(row, "model" if stops[place] else "cap")))
                    rows[place] = None
            done, steps = done + len(finished), steps + len(active)
            yield Progress(done, len(prompts), steps, tuple(finished))

    # ------------------------------------------------------------- one round

    def _step(
        self, context: Context, rows: Sequence[_Row | None], keys: jax.Array
    ) -> tuple[Context, list[SampledStep], np.ndarray]:
        """One step of every row that holds a trajectory; [B] bool, which of them stop after it."""
        ids, mode, occupied = self.model.ids, self.config.mode, _occupied(rows)
        present = self._put(occupied)
        numbers = self._put(np.array([len(row.steps) if row else 0 for row in rows], np.int32))
        work = Work(context, {}, context.next_id, present, stages.step_keys(keys, numbers))
        texts: dict[str, jax.Array] = {}
        images: dict[str, jax.Array] = {}
        refining, opens = np.zeros(len(rows), bool), np.full(len(rows), ids.end_of_text)
        if mode != Mode.SINGLE_PASS:
            work, texts["plan"], _ = self._write("plan", work)
        work, images["sketch"], _ = self._draw("sketch", work)
        if mode == Mode.PROCESS:
            work, texts["inspect"], end = self._write("inspect", work)
            opens = self._decide("after_inspect", (ids.refine, ids.ins, ids.end_of_text), end, work)
            refining = occupied & (opens == ids.refine)
        if refining.any():
            work, texts["refine"], _ = self._write("refine", work.replace(rows=self._put(refining)))
            work, images["refined"], end = self._draw("refined", work)
            after = self._decide("after_refined", (ids.ins, ids.end_of_text), end, work)
            opens = np.where(refining, after, opens)
        context = stages.commit(self.model, self.params, work, present)
        return context, self._collect(texts, images, refining), opens == ids.end_of_text

    def _write(self, stage: str, work: Work) -> tuple[Work, jax.Array, jax.Array]:
        """The work with a text added; its tokens [B, T], the hidden state of its closing token."""
        text = stages.write(self.model, self._texts[stage], stage, self.params, work)
        return _with(work, stage, text), text.tokens, text.end

    def _draw(self, target: str, work: Work) -> tuple[Work, jax.Array, jax.Array]:
        """The work with an image added; its pixels [B, H, W, 3], the hidden state of its closing token."""
        image = stages.draw(self.model, self.config.flow, target, self.params, work)
        return _with(work, target, image), image.images, image.end

    def _decide(self, draw: str, choices: tuple[int, ...], end: jax.Array, work: Work) -> np.ndarray:
        temperature = self.config.temperature
        return jax.device_get(stages.decide(self.model, choices, temperature, draw, self.params, end, work))

    def _collect(self, texts: dict, images: dict, refining: np.ndarray) -> list[SampledStep]:
        """What the rows wrote and drew, in the terms of a trajectory."""
        texts, images = jax.device_get((texts, images))

        def step(row: int) -> SampledStep:
            written = {
                name: tokens[row] for name, tokens in texts.items() if name != "refine" or refining[row]
            }
            return SampledStep(
                **{f"{name}_text": self.tokenizer.decode(ids.tolist()) for name, ids in written.items()},
                sketch=images["sketch"][row],
                refined=images["refined"][row] if refining[row] else None,
            )

        return [step(row) for row in range(len(refining))]

    # ------------------------------------------------------- rows and their prompts

    def _enter(self, context: Context | None, rows: Sequence[_Row | None], fresh: np.ndarray) -> Context:
        """The context with the prompts of the rows `fresh` in it."""
        empty = np.full(self.model.layout.prompt, PAD_ID, np.int32)
        tokens = [self.encode(row.prompt) if new else empty for row, new in zip(rows, fresh, strict=True)]
        prompt, next_id = stages.begin(self.model, self.params, self._put(np.stack(tokens)))
        if context is None:
            return stages.blank(self.model, self.params, prompt, next_id)
        return stages.enter(context, prompt, next_id, self._put(fresh))

    def _row_keys(self, rows: Sequence[_Row | None]) -> jax.Array:
        seeds = [row.seed if row else 0 for row in rows]
        hashes = [zlib.crc32(row.prompt.encode()) if row else 0 for row in rows]
        return stages.row_keys(self._put(np.array(seeds, np.uint32)), self._put(np.array(hashes, np.uint32)))

    def _trajectory(self, row: _Row, stopped: str) -> SampledTrajectory:
        images = sum(1 + (step.refined is not None) for step in row.steps)
        return SampledTrajectory(
            prompt=row.prompt,
            mode=self.config.mode,
            seed=row.seed,
            steps=tuple(row.steps),
            stopped=stopped,
            sampling_steps=images * self.config.flow_steps,
            seconds=row.seconds,
        )

    def _put(self, x: np.ndarray) -> jax.Array:
        return jax.device_put(x, self.sharding)

    def _seeds(self, count: int, seed: Seeds) -> list[int]:
        seeds = self.config.seed if seed is None else seed
        seeds = [int(seeds)] * count if np.ndim(seeds) == 0 else [int(s) for s in seeds]
        if len(seeds) != count:
            raise PromptError(f"{count} prompts and {len(seeds)} seeds: give one seed, or one per prompt")
        if bad := [s for s in seeds if not 0 <= s < 2**32]:
            raise PromptError(f"a seed is a whole number in [0, 2^32), got {bad[0]}")
        return seeds

    def _check(self) -> None:
        layout, config = self.model.layout, self.config
        if self.rows < 1:
            raise SamplerError(f"rows must be at least 1, got {self.rows}")
        if layout.context == "full" and self._most_steps > layout.steps:
            raise SamplerError(
                f"sampling.max_steps is {config.max_steps}, but with layout.context = 'full' a trajectory "
                f"has room for layout.steps = {layout.steps}"
            )
        for slot, least in (("plan", 3), ("inspect", 2), ("refine", 3)):
            if (size := getattr(layout, slot)) < least:
                raise SamplerError(f"layout.{slot} must be at least {least} to sample, got {size}")

    @property
    def _most_steps(self) -> int:
        return self.config.max_steps if self.config.mode == Mode.PROCESS else 1


def _occupied(rows: Sequence[_Row | None]) -> np.ndarray:
    return np.array([row is not None for row in rows])


def _with(work: Work, name: str, new: stages.Written | stages.Drawn) -> Work:
    return work.replace(parts={**work.parts, name: new.memory}, next_id=new.next_id)
