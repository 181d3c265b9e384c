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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import vit
from process_gen.models.autoencoder import latent_shape
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

Contexts = tuple[Context, Context | None]
"""The context of all rows, and that of the reader of their texts alone, if guidance asks for one."""

Images = Sequence[np.ndarray | None] | None
"""Input images of prompts, [H, W, 3] uint8 of the layout's size, None where a prompt has none."""


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
    image: np.ndarray | None = None
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
      frozen: weights of an autoencoder that has any.
      ambient: what its programs are traced and run inside: `partition.over` a mesh that the parameters are
        spread over.

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
        frozen: Any = None,
        ambient: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.model, self.params, self.tokenizer = model, jax.device_put(params), tokenizer
        self.frozen = None if frozen is None else jax.device_put(frozen)
        self.config, self.rows, self.sharding = config or SamplerConfig(), rows, sharding
        self.ambient = ambient
        self._check()
        self._texts = text_specs(model, tokenizer, self.config)

    def with_params(self, params: Any) -> Sampler:
        """The same sampler with other weights; nothing is compiled again."""
        other = copy.copy(self)
        other.params = jax.device_put(params)
        return other

    def with_config(self, **changes: Any) -> Sampler:
        """The same model with other settings."""
        config = dataclasses.replace(self.config, **changes)
        return self._like(self.model, config)

    def with_shape(self, image_size: tuple[int, int], vit_grid: tuple[int, int] | None = None) -> Sampler:
        """The same model for images of another shape, which is compiled for itself.

        Without a `vit_grid`, images have as many ViT tokens as before at most.

        Raises:
          ValueError: the model cannot hold such images.
        """
        grid, _ = latent_shape(self.model.config, image_size)
        layout = self.model.layout.reshaped(image_size, grid, vit_grid)
        vit.check(self.model.config, layout)
        return self._like(self.model.clone(layout=layout), self.config)

    def _like(self, model: UnifiedModel, config: SamplerConfig) -> Sampler:
        places = (self.rows, self.sharding, self.frozen, self.ambient)
        return Sampler(model, self.params, self.tokenizer, config, *places)

    def encode(self, prompt: str, image: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The slots of a prompt: `tokens`, and what else the layout has room for.

        The text of a prompt with an image stands after the image where the
        layout has a slot there (`layout.instruction`), else before it.

        Raises:
          PromptError: the text is empty, or too long (the message says how many
            tokens fit), or the image does not fit the layout.
        """
        layout = self.model.layout
        after = image is not None and layout.instruction > 0
        slots = self._idle()
        self._fill(slots["instruction" if after else "tokens"], prompt, "instruction" if after else "prompt")
        if image is not None and not layout.prompt_image:
            raise PromptError("the model has no room for an input image (layout.prompt_image is False)")
        if image is not None and (image.dtype != np.uint8 or image.shape != (*layout.image_size, 3)):
            raise PromptError(
                f"an input image is {image.dtype}{list(image.shape)}, the model takes "
                f"uint8{[*layout.image_size, 3]}"
            )
        return slots if image is None else slots | {"images": image, "has_image": np.asarray(True)}

    def _fill(self, slot: np.ndarray, text: str, name: str) -> None:
        """Writes a text between its brackets into an empty slot."""
        if not text.strip():
            raise PromptError("the prompt is empty")
        ids, size = self.tokenizer.encode(text), len(slot)
        if not ids:
            raise PromptError(f"the prompt {text!r} has no tokens")
        if len(ids) > size - 2:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, {size - 2} fit (layout.{name} = {size}, two of which are "
                f"brackets): {text[:60]!r}"
            )
        slot[: len(ids) + 2] = [self.model.ids.im_start, *ids, self.model.ids.im_end]

    def sample(
        self, prompts: Sequence[str], seed: Seeds = None, images: Images = None
    ) -> list[SampledTrajectory]:
        """One trajectory per prompt, in the order of the prompts.

        Args:
          prompts: a prompt may stand there several times; give one seed for each then.
          seed: one for all prompts, or one per prompt; the config's by default.
          images: input images, one per prompt.

        Raises:
          PromptError: a prompt is empty or too long, a seed is out of range, or an image does not fit.
        """
        drawn: dict[int, SampledTrajectory] = {}
        for progress in self.stream(prompts, seed, images):
            drawn.update(progress.finished)
        return [drawn[i] for i in range(len(prompts))]

    def stream(self, prompts: Sequence[str], seed: Seeds = None, images: Images = None) -> Iterator[Progress]:
        """Draws prompts and yields after every round of steps; see `sample`."""
        waiting = self._rows_of(prompts, seed, images)[::-1]
        rows: list[_Row | None] = [None] * self.rows
        contexts, keys, done, steps = None, None, 0, 0
        while done < len(prompts):
            start, fresh = time.perf_counter(), np.zeros(self.rows, bool)
            for place in np.flatnonzero(~_occupied(rows))[: len(waiting)]:
                rows[place], fresh[place] = waiting.pop(), True
            with self.ambient():
                if fresh.any():
                    contexts, keys = self._enter(contexts, rows, fresh), self._row_keys(rows)
                contexts, drawn, stops = self._step(contexts, rows, keys)
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

    def answer(self, prompts: Sequence[str], seed: Seeds = None, images: Images = None) -> list[str]:
        """What the model says to each prompt, in words; its input image is what it is asked about.

        Raises:
          PromptError: see `sample`.
        """
        waiting, answers = self._rows_of(prompts, seed, images), []
        while waiting:
            now, waiting = waiting[: self.rows], waiting[self.rows :]
            rows = [*now, *[None] * (self.rows - len(now))]
            with self.ambient():
                context, texts = self._enter(None, rows, _occupied(rows))
                keys = stages.step_keys(self._row_keys(rows), self._put(np.zeros(len(rows), np.int32)))
                work = self._work((context, texts), self._put(_occupied(rows)), keys)
                _, tokens, _ = self._write("answer", work)
            answers += [self.tokenizer.decode(ids.tolist()) for ids in jax.device_get(tokens)[: len(now)]]
        return answers

    def _rows_of(self, prompts: Sequence[str], seed: Seeds, images: Images) -> list[_Row]:
        """The trajectories that some prompts ask for; complains before any work."""
        seeds = self._seeds(len(prompts), seed)
        images = [None] * len(prompts) if images is None else images
        if len(images) != len(prompts):
            raise PromptError(
                f"{len(prompts)} prompts and {len(images)} images: give one per prompt, or None"
            )
        for prompt, image in zip(prompts, images, strict=True):
            self.encode(prompt, image)
        parts = zip(prompts, seeds, images, strict=True)
        return [_Row(i, prompt, seed, image) for i, (prompt, seed, image) in enumerate(parts)]

    # ------------------------------------------------------------- one round

    def _step(
        self, contexts: Contexts, rows: Sequence[_Row | None], keys: jax.Array
    ) -> tuple[Contexts, list[SampledStep], np.ndarray]:
        """One step of every row that holds a trajectory; [B] bool, which of them stop after it."""
        ids, mode, occupied = self.model.ids, self.config.mode, _occupied(rows)
        present = self._put(occupied)
        numbers = self._put(np.array([len(row.steps) if row else 0 for row in rows], np.int32))
        work = self._work(contexts, present, stages.step_keys(keys, numbers))
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
        contexts = stages.commit(self.model, self.params, work, present)
        return contexts, self._collect(texts, images, refining), opens == ids.end_of_text

    def _work(self, contexts: Contexts, present: jax.Array, keys: jax.Array) -> Work:
        """The start of a step."""
        works = [None if c is None else Work(c, {}, c.next_id, present, keys) for c in contexts]
        return works[0].replace(texts=works[1])

    def _write(self, stage: str, work: Work) -> tuple[Work, jax.Array, jax.Array]:
        """The work with a text added; its tokens [B, T], the hidden state of its closing token."""
        text = stages.write(self.model, self._texts[stage], stage, self.params, work)
        return work.adding(stage, text), text.tokens, text.end

    def _draw(self, target: str, work: Work) -> tuple[Work, jax.Array, jax.Array]:
        """The work with an image added; its pixels [B, H, W, 3], the hidden state of its closing token."""
        latents = stages.draw(self.model, self.config.flow, target, self.params, work)
        images = stages.show(self.model, latents, self.frozen)
        image = stages.look(self.model, self.params, *stages.see(self.model, images, self.frozen), work)
        return work.adding(target, image), images, image.end

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

    def _enter(self, contexts: Contexts | None, rows: Sequence[_Row | None], fresh: np.ndarray) -> Contexts:
        """The contexts with the prompts of the rows `fresh` in them."""
        idle = self._idle()
        pairs = zip(rows, fresh, strict=True)
        slots = [self.encode(row.prompt, row.image) if new else idle for row, new in pairs]
        given = {name: self._put(np.stack([one[name] for one in slots])) for name in idle}
        if "images" in given:
            given["latents"], given["view"] = stages.see(self.model, given.pop("images"), self.frozen)
        prompts = stages.Prompts(**given)
        flow, old = self.config.flow, contexts or (None, None)

        def entered(context: Context | None, prompts: stages.Prompts) -> Context:
            prompt, next_id, _ = stages.begin(self.model, self.params, prompts)
            if context is None:
                return stages.blank(self.model, self.params, prompt, next_id)
            return stages.enter(context, prompt, next_id, self._put(fresh))

        if not (flow.own and "noimg" in flow.branches):
            return entered(old[0], prompts), None
        texts = prompts
        if prompts.has_image is not None:
            texts = prompts.replace(has_image=jnp.zeros_like(prompts.has_image))
        return entered(old[0], prompts), entered(old[1], texts)

    def _idle(self) -> dict[str, np.ndarray]:
        """The slots of a prompt in a row that holds none."""
        layout = self.model.layout
        slots = {"tokens": np.full(layout.prompt, PAD_ID, np.int32)}
        if layout.prompt_image:
            slots |= {"images": np.zeros((*layout.image_size, 3), np.uint8), "has_image": np.asarray(False)}
        if layout.instruction:
            slots["instruction"] = np.full(layout.instruction, PAD_ID, np.int32)
        return slots

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
            prompt_image=row.image,
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


def text_specs(model: UnifiedModel, tokenizer: Any, config: SamplerConfig) -> dict[str, TextSpec]:
    """How the texts of a step are decoded, by stage, and `answer`."""
    ids, layout = model.ids, model.layout
    controls = tuple(sorted(tokenizer.reserved - {ids.im_end}))
    marks = tuple(tokenizer.encode(token)[0] for token in markup.MARKUP_TOKENS)

    def spec(size, prefix, banned=()):
        start = (ids.im_start, *prefix)
        return TextSpec(size, start, controls + banned, tokenizer.vocab_size, config.temperature)

    return {
        "plan": spec(layout.plan, (ids.ins,)),
        "inspect": spec(layout.inspect, (), marks),
        "refine": spec(layout.refine, (ids.refine,)),
        "answer": spec(config.answer_tokens, (), marks),
    }


def _occupied(rows: Sequence[_Row | None]) -> np.ndarray:
    return np.array([row is not None for row in rows])
