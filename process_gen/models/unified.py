"""The unified model: `begin` reads a prompt, `step` goes through the four stages.

    context          = begin(params, prompt)
    context, outputs = step(params, context, inputs)

Training scans `step` over a row (`process_gen.models.unroll`). Sampling makes
the same step out of the same pieces, `read_text`, `read_image` and `velocity`,
with its own text and images (`process_gen.sampling`).

B rows, S step slots, T tokens of a text slot, J noised copies, N latent tokens
and P ViT tokens of an image, V values of a latent token, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import context as context_lib
from process_gen.models import flow, vit
from process_gen.models.backbone import ATTENTION, Backbone, Visible
from process_gen.models.config import ModelConfig
from process_gen.models.context import Context, Memory
from process_gen.models.layers import annotated, linear
from process_gen.models.positions import grid_places, sincos_table, timestep_features
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import Chunk, QueryGroup


@flax.struct.dataclass
class StepInputs:
    """What teacher forcing feeds one step.

    Attributes:
      present: [B] bool.
      plan, inspect, refine: [B, T] int32 tokens, all pad where absent.
      sketch, refined: [B, N, V] latents that later tokens see.
      sketch_noised, refined_noised: [B, J, N, V] flow inputs x_t.
      sketch_t, refined_t: [B, J] their timesteps.
      hide_text, hide_images: [B] bool, conditioning dropout: what the flow
        targets of this step may not see (the newest text; all clean images).
    """

    present: Any
    plan: Any
    inspect: Any
    refine: Any
    sketch: Any
    refined: Any
    sketch_noised: Any
    refined_noised: Any
    sketch_t: Any
    refined_t: Any
    hide_text: Any
    hide_images: Any


@flax.struct.dataclass
class StepOutputs:
    """What the losses read of one step.

    Attributes:
      plan, inspect, refine: [B, T, D] hidden states of the text slots.
      sketch_end, refined_end: [B, D] hidden states of the vision tokens that
        close the visual states: of their ViT tokens where there are any.
      sketch_velocity, refined_velocity: [B, J, N, V].
    """

    plan: Any
    inspect: Any
    refine: Any
    sketch_end: Any
    refined_end: Any
    sketch_velocity: Any
    refined_velocity: Any


def token_count(tokens: jax.Array) -> jax.Array:
    """Tokens of a text slot that are not padding, [...]."""
    return (tokens != PAD_ID).sum(-1, dtype=jnp.int32)


class UnifiedModel(nn.Module):
    """Parameters and the pure functions over them."""

    config: ModelConfig
    layout: Layout
    ids: ControlIds

    def setup(self):
        c = self.config
        vit.check(c, self.layout)
        embedding_init = annotated(nn.initializers.normal(1.0), "vocab", "embed")
        self.embedding = self.param("embedding", embedding_init, (c.vocab_size, c.width))
        self.backbone = Backbone(c)
        if c.latent_positions == "learned":
            table_init = annotated(nn.initializers.normal(1.0), "position", "embed")
            self.positions = self.param("latent_positions", table_init, (c.max_latent_side**2, c.width))
        self.head = linear(c.vocab_size, ("embed", "vocab"), c)
        self.latent_in = linear(c.width, ("latent", "embed"), c, bias=True)
        self.latent_out = linear(self.layout.latent_values, ("embed", "latent"), c, bias=True, scale=0.0)
        if self.layout.vit_tokens:
            self.vit = vit.Vit(c, self.layout.vit_grid)
            self.connector = vit.Connector(c, self.layout.vit_grid)
        self.time_in = linear(c.width, ("time", "mlp"), c, bias=True)
        self.time_out = linear(c.width, ("mlp", "embed"), c, bias=True)

    # ------------------------------------------------------------------ pieces

    def embed_text(self, tokens: jax.Array) -> jax.Array:
        """[..., T] ids to [..., T, D]; padding, which nothing sees, takes the first row."""
        return jnp.take(self.embedding, jnp.maximum(tokens, 0), axis=0).astype(jnp.dtype(self.config.dtype))

    def embed_latents(self, latents: jax.Array, t: jax.Array) -> jax.Array:
        """Latent tokens [B, J, N, V] at timesteps [B, J] to [B, J * N, D]."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        time = timestep_features(t * c.time_scale).astype(dtype)
        time = self.time_out(nn.silu(self.time_in(time)))[:, :, None]
        x = self.latent_in(latents.astype(dtype)) + time + self._latent_table().astype(dtype)[None, None]
        return x.reshape(x.shape[0], -1, c.width)

    def embed_views(self, latents: jax.Array) -> jax.Array:
        """What the ViT sees of clean images [B, J, N, V], as tokens [B, J * P, D]."""
        patches = vit.to_patches(self.config, self.layout, latents)
        x = self.connector(self.vit(patches.reshape(-1, *patches.shape[2:])))
        return x.reshape(latents.shape[0], -1, self.config.width)

    def _latent_table(self) -> jax.Array:
        """Positions of an image's latent tokens, [N, D]."""
        c, (rows, columns) = self.config, grid_places(self.layout.latent_grid)
        if c.latent_positions == "learned":
            return self.positions[rows * c.max_latent_side + columns]
        return jnp.asarray(sincos_table(c.width, c.max_latent_side, (rows, columns)))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] hidden states to [..., vocabulary], float32."""
        return self.head(hidden).astype(jnp.float32)

    def to_velocity(self, hidden: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """Hidden latent tokens [B, J * N, D] to velocities shaped like x_t, float32."""
        out = self.latent_out(hidden).astype(jnp.float32).reshape(x_t.shape)
        return flow.velocity_from_clean(x_t, out, t) if self.config.prediction == "clean" else out

    def run(self, chunk: Chunk, streams, ids, memory: Memory, attention):
        """The backbone over a chunk; `ids` [B, L] in memory order."""
        rows, columns = grid_places(self.layout.latent_grid)
        images = chunk.latent_tokens // self.layout.latents
        places = tuple(jnp.tile(jnp.asarray(p, jnp.float32), images) for p in (rows, columns))
        split = {"und": ids[:, : chunk.und_tokens], "gen": ids[:, chunk.und_tokens :]}
        return self.backbone(streams, split, places, (memory.k, memory.v), attention)

    def empty_context(self, rows: int) -> Context:
        """A context in which nothing has been said yet."""
        return Context(
            prompt=Memory.empty(self.config, rows, self.layout.prompt),
            history=Memory.empty(self.config, rows, context_lib.history_slots(self.layout)),
            next_id=jnp.zeros(rows, jnp.int32),
            slot=jnp.zeros((), jnp.int32),
        )

    def read_text(self, memory: Memory, tokens: jax.Array, next_id: jax.Array) -> tuple[jax.Array, Memory]:
        """Text after `memory`: hidden states [B, T, D], and what later tokens see of it.

        `tokens` [B, T] is padded with `PAD_ID`; its first id is `next_id` [B].
        """
        chunk = Chunk([self.layout.text_slot("plan").resized(tokens.shape[1])])
        seen = Visible(memory.visible, tokens != PAD_ID)
        ids = next_id[:, None] + jnp.arange(tokens.shape[1])[None]
        attention = ATTENTION[self.config.attention](chunk, lambda group: seen)
        hidden, (k, v) = self.run(chunk, {"und": self.embed_text(tokens)}, ids, memory, attention)
        return hidden["und"], Memory.of(k, v, seen.chunk)

    def _image(self, chunk: Chunk, memory, latents, t, next_id):
        """An image [B, N, V] as `chunk` has it: latents at `t` [B], then ViT tokens if it holds any."""
        b = latents.shape[0]
        edges = jnp.asarray([self.ids.vision_start, self.ids.vision_end] * len(chunk.segments))
        und = [self.embed_text(jnp.broadcast_to(edges, (b, chunk.text_tokens)))]
        if chunk.vit_tokens:
            und.append(self.embed_views(latents[:, None]))
        streams = {"und": jnp.concatenate(und, 1), "gen": self.embed_latents(latents[:, None], t[:, None])}
        seen = Visible(memory.visible, jnp.ones((b, chunk.tokens), bool))
        ids = [jnp.broadcast_to(next_id[:, None] + i, (b, s.tokens)) for i, s in enumerate(chunk.segments)]
        hidden, (k, v) = self.run(
            chunk,
            streams,
            _in_memory(chunk, ids),
            memory,
            ATTENTION[self.config.attention](chunk, lambda group: seen),
        )
        return hidden, Memory.of(k, v, seen.chunk)

    def read_image(self, memory: Memory, latents: jax.Array, next_id: jax.Array) -> tuple[jax.Array, Memory]:
        """A clean image [B, N, V] after `memory`: hidden state [B, D] of its closing token, and its slots.

        Where the layout has ViT tokens they are read as well; the image takes `layout.state_ids` rotary ids.
        """
        chunk = _state_chunk(self.layout)
        hidden, new = self._image(chunk, memory, latents, jnp.zeros(latents.shape[0]), next_id)
        return hidden["und"][:, chunk.text_tokens - 1], new

    def velocity(self, memory: Memory, x_t: jax.Array, t: jax.Array, next_id: jax.Array) -> jax.Array:
        """The velocity [B, N, V] of a noised image at `t` [B] after `memory`."""
        hidden, _ = self._image(_noised_chunk(self.layout), memory, x_t, t, next_id)
        return self.to_velocity(hidden["gen"], x_t[:, None], t[:, None])[:, 0]

    # ---------------------------------------------------------- begin and step

    def begin(self, prompt: jax.Array) -> tuple[Context, jax.Array]:
        """Reads prompts [B, T]; returns the context and the hidden state [B, D] of the last token."""
        context = self.empty_context(prompt.shape[0])
        empty = Memory.empty(self.config, prompt.shape[0], 0)
        hidden, memory = self.read_text(empty, prompt, context.next_id)
        count = token_count(prompt)
        return context.replace(prompt=memory, next_id=count), at_token(hidden, count - 1)

    def step(self, context: Context, inputs: StepInputs) -> tuple[Context, StepOutputs]:
        """One step, teacher-forced: every stage in one chunk."""
        chunk = _step_chunk(self.layout)
        streams = {"und": self._step_und(inputs), "gen": self._step_latents(inputs)}
        valid = self._step_valid(chunk, inputs)
        ids, next_id = self._step_ids(chunk, inputs, context.next_id)
        memory = context.memory
        visible_to = functools.partial(self._visible_to, chunk, inputs, memory.visible, valid)
        hidden, (k, v) = self.run(
            chunk, streams, ids, memory, ATTENTION[self.config.attention](chunk, visible_to)
        )
        outputs = self._step_outputs(chunk, inputs, hidden)
        parts = self.layout.visible_parts
        new = {name: _slots(chunk, segments, k, v, valid) for name, segments in parts.items()}
        return self.advance(context, new, inputs.present, next_id), outputs

    def advance(
        self, context: Context, new: dict[str, Memory], present: jax.Array, next_id: jax.Array
    ) -> Context:
        """The context after a step whose visible parts are `new`; rows not `present` [B] keep theirs."""
        if self.layout.context != "full":
            refined = new["refined"].visible.any(1)
            newest = context_lib.where(refined, new["refined"], new["sketch"])
            if self.layout.context == "step":
                newest = context_lib.joined([new["plan"], newest])
            history = context_lib.where(present, newest, context.history)
        else:
            written = context_lib.joined([new[name] for name in self.layout.visible_parts]).only(present)
            history = context.history.write(written, context.slot * self.layout.visible_tokens)
        next_id = jnp.where(present, next_id, context.next_id)
        return context.replace(history=history, next_id=next_id, slot=context.slot + 1)

    def _step_und(self, inputs: StepInputs) -> jax.Array:
        edges = jnp.asarray([self.ids.vision_start, self.ids.vision_end])
        edges = jnp.broadcast_to(edges, (inputs.present.shape[0], 2))
        texts = {"plan": inputs.plan, "inspect": inputs.inspect, "refine": inputs.refine}
        und = self.embed_text(
            jnp.concatenate([texts.get(s.name, edges) for s in self.layout.step_segments], 1)
        )
        if not self.layout.vit_tokens:
            return und
        views = self.embed_views(jnp.stack([inputs.sketch, inputs.refined], axis=1))
        return jnp.concatenate([und, views], axis=1)

    def _step_latents(self, inputs: StepInputs) -> jax.Array:
        images = [
            inputs.sketch_noised,
            inputs.sketch[:, None],
            inputs.refined_noised,
            inputs.refined[:, None],
        ]
        clean = jnp.zeros((inputs.present.shape[0], 1))
        return self.embed_latents(
            jnp.concatenate(images, axis=1),
            jnp.concatenate([inputs.sketch_t, clean, inputs.refined_t, clean], axis=1),
        )

    def _step_valid(self, chunk: Chunk, inputs: StepInputs) -> jax.Array:
        """[B, L] bool in memory order: tokens that are there."""
        present = inputs.present[:, None]
        texts = {"plan": inputs.plan, "inspect": inputs.inspect, "refine": inputs.refine}
        has_refine = (token_count(inputs.refine) > 0)[:, None] & present
        valid = []
        for s in chunk.segments:
            there = present if s.name.startswith("sketch") else has_refine
            there = jnp.broadcast_to(there, (there.shape[0], s.tokens))
            valid.append((texts[s.name] != PAD_ID) & present if s.kind == "text" else there)
        return _in_memory(chunk, valid)

    def _step_ids(self, chunk: Chunk, inputs: StepInputs, next_id: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rotary ids [B, L] in memory order, and the id that follows the step.

        Text counts up; an image has one id, which its noised copies share, and
        its ViT tokens have the next one.
        """
        texts = {"plan": inputs.plan, "inspect": inputs.inspect, "refine": inputs.refine}
        has_refine = (token_count(inputs.refine) > 0).astype(jnp.int32)
        grows = {"sketch": jnp.ones_like(next_id), "refined": has_refine}
        grows |= {f"{name}_vit": grow for name, grow in grows.items()}
        ids = []
        for s in chunk.segments:
            if s.kind == "text":
                ids.append(next_id[:, None] + jnp.arange(s.text)[None])
                next_id = next_id + token_count(texts[s.name])
            else:
                ids.append(jnp.broadcast_to(next_id[:, None], (next_id.shape[0], s.tokens)))
                next_id = next_id + grows.get(s.name, 0)
        return _in_memory(chunk, ids), next_id

    def _visible_to(self, chunk: Chunk, inputs: StepInputs, context, valid, group: QueryGroup) -> Visible:
        """Conditioning dropout: what a flow target may not see, taken from its visible keys.

        The newest text is the refine instruction for a corrected image, else
        the plan, else (single pass) the prompt.
        """
        if not group.noised:
            return Visible(context, valid)
        text, images = inputs.hide_text[:, None], inputs.hide_images[:, None]
        slots = np.arange(context.shape[1])

        def members(part):
            return jnp.asarray(_members(chunk, self.layout.visible_parts[part]))

        context = context & ~(images & jnp.asarray(context_lib.image_slots(self.layout))[None])
        if group.names[0].startswith("refined"):
            hidden = text & members("refine") | images & members("sketch")
        else:
            hidden = text & members("plan")
            no_plan = (token_count(inputs.plan) == 0)[:, None]
            context = context & ~(text & no_plan & jnp.asarray(slots < self.layout.prompt)[None])
        return Visible(context, valid & ~hidden)

    def _step_outputs(self, chunk: Chunk, inputs: StepInputs, hidden: dict[str, jax.Array]) -> StepOutputs:
        def velocity(prefix, x_t, t):
            slices = [chunk.latents(f"{prefix}_noised_{i}") for i in range(x_t.shape[1])]
            first = chunk.und_tokens
            parts = [hidden["gen"][:, s.start - first : s.stop - first] for s in slices]
            return self.to_velocity(jnp.concatenate(parts, axis=1), x_t, t)

        und = hidden["und"]

        def end(part):
            return und[:, chunk.text(self.layout.visible_parts[part][-1].name).stop - 1]

        return StepOutputs(
            **{name: und[:, chunk.text(name)] for name in ("plan", "inspect", "refine")},
            sketch_end=end("sketch"),
            refined_end=end("refined"),
            sketch_velocity=velocity("sketch", inputs.sketch_noised, inputs.sketch_t),
            refined_velocity=velocity("refined", inputs.refined_noised, inputs.refined_t),
        )

    def __call__(self, batch: Batch) -> jax.Array:
        """Touches every parameter with the first step of a batch; `init` calls it."""
        layout, rows = self.layout, batch.present.shape[0]
        image = jnp.zeros((rows, layout.latents, layout.latent_values))
        sketch_noised = jnp.repeat(image[:, None], layout.sketch_copies, 1)
        refined_noised = jnp.repeat(image[:, None], layout.refined_copies, 1)
        never = jnp.zeros(rows, bool)
        inputs = StepInputs(
            present=batch.present[:, 0],
            plan=batch.plan_tokens[:, 0],
            inspect=batch.inspect_tokens[:, 0],
            refine=batch.refine_tokens[:, 0],
            sketch=image,
            refined=image,
            sketch_noised=sketch_noised,
            refined_noised=refined_noised,
            sketch_t=sketch_noised[:, :, 0, 0],
            refined_t=refined_noised[:, :, 0, 0],
            hide_text=never,
            hide_images=never,
        )
        context, _ = self.begin(batch.prompt_tokens[:, 0])
        _, outputs = self.step(context, inputs)
        return self.logits(outputs.plan)


def at_token(hidden: jax.Array, index: jax.Array) -> jax.Array:
    """hidden [B, T, D] at one token per row, [B, D]."""
    pick = jax.nn.one_hot(index, hidden.shape[1], dtype=hidden.dtype)
    return jnp.einsum("btd,bt->bd", hidden, pick)


def _in_memory(chunk: Chunk, parts: Sequence[jax.Array]) -> jax.Array:
    """Arrays [B, tokens], one per segment (constant over an image), to [B, L] in memory order."""
    pairs = list(zip(chunk.segments, parts, strict=True))
    blocks = [x[:, : s.text] for s, x in pairs]
    blocks += [x[:, : s.vit] for s, x in pairs if s.vit]
    return jnp.concatenate(blocks + [x[:, : s.latents] for s, x in pairs if s.latents], axis=1)


def _members(chunk: Chunk, segments: Sequence[Segment]) -> np.ndarray:
    """[1, L] bool: the tokens of some segments."""
    members = np.zeros((1, chunk.tokens), bool)
    for piece in chunk.memory(*(s.name for s in segments)):
        members[:, piece] = True
    return members


def _slots(chunk: Chunk, segments: Sequence[Segment], k: jax.Array, v: jax.Array, valid: jax.Array) -> Memory:
    """The keys and values of some segments, cut out of a chunk's, in memory order."""
    pieces = chunk.memory(*(s.name for s in segments))
    return Memory.of(
        jnp.concatenate([k[:, :, s] for s in pieces], axis=2),
        jnp.concatenate([v[:, :, s] for s in pieces], axis=2),
        jnp.concatenate([valid[:, s] for s in pieces], axis=1),
    )


@functools.cache
def _step_chunk(layout: Layout) -> Chunk:
    return Chunk(layout.step_segments)


@functools.cache
def _state_chunk(layout: Layout) -> Chunk:
    return Chunk(layout.state_slots("image"))


@functools.cache
def _noised_chunk(layout: Layout) -> Chunk:
    return Chunk([layout.image_slot("image", "noised")])
