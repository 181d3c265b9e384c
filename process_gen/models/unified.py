"""The unified model: `begin` reads a prompt, `step` goes through the four stages.

    context          = begin(params, prompt)
    context, outputs = step(params, context, inputs)

Training scans `step` over a row (`process_gen.models.unroll`). Sampling makes
the same step out of the same pieces, `read_text`, `read_image` and `velocity`,
with its own text and images (`process_gen.sampling`).

B rows, S step slots, T tokens of a text slot, J noised copies, N latent tokens
and P ViT tokens of an image, V values of a latent token, U values of a ViT
patch, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from process_gen.models import context as context_lib
from process_gen.models import flow, vit
from process_gen.models.assembly import (
    Content,
    at_token,
    members,
    rotary_ids,
    slots,
    token_count,
    valid_tokens,
)
from process_gen.models.attention import Visible, make_attention, takes_parts
from process_gen.models.backbone import Backbone
from process_gen.models.config import ModelConfig
from process_gen.models.context import Context, Memory
from process_gen.models.layers import annotated, linear
from process_gen.models.likelihood import chunked_cross_entropy, cross_entropy
from process_gen.models.partition import constrain
from process_gen.models.positions import grid_places, sincos_table, timestep_features
from process_gen.models.step_io import PromptInputs, StepInputs, StepOutputs
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.visibility import Chunk, QueryGroup


class Pass(NamedTuple):
    """A chunk gone through the backbone.

    Attributes:
      hidden: {"und": [B, T, D], "gen": [B, G, D]} after the final norms.
      k, v: of the chunk, [layers, B, L, K, H].
      valid: [B, L] bool in memory order.
      next_id: [B] int32, the rotary id that follows.
    """

    hidden: dict[str, jax.Array]
    k: jax.Array
    v: jax.Array
    valid: jax.Array
    next_id: jax.Array


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

    def embed_views(self, patches: jax.Array) -> jax.Array:
        """What the ViT sees of clean images, patches [B, J, P, U], to tokens [B, J * P, D]."""
        pictures = constrain("ViT patches", patches.reshape(-1, *patches.shape[2:]), "rows", None, None)
        x = self.connector(self.vit(pictures))
        return x.reshape(patches.shape[0], -1, self.config.width)

    def _latent_table(self) -> jax.Array:
        """Positions of an image's latent tokens, [N, D]."""
        c, (rows, columns) = self.config, grid_places(self.layout.latent_grid)
        if c.latent_positions == "learned":
            return self.positions[rows * c.max_latent_side + columns]
        return jnp.asarray(sincos_table(c.width, c.max_latent_side, (rows, columns)))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] hidden states to [..., vocabulary], float32."""
        return self.head(hidden).astype(jnp.float32)

    def cross_entropy(self, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        """-log p of `labels` [B, ...] at hidden states [B, ..., D], float32; any number at padding."""
        c = self.config
        if not c.logits_in_chunks:
            return cross_entropy(self.logits(hidden), labels)
        rows, kernel = hidden.shape[0], self.head.variables["params"]["kernel"]
        flat = hidden.astype(jnp.dtype(c.dtype)).reshape(rows, -1, c.width)
        values = chunked_cross_entropy(flat, kernel, labels.reshape(rows, -1), c.logit_chunk)
        return values.reshape(labels.shape)

    def to_velocity(self, hidden: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """Hidden latent tokens [B, J * N, D] to velocities shaped like x_t, float32."""
        out = self.latent_out(hidden).astype(jnp.float32).reshape(x_t.shape)
        return flow.velocity_from_clean(x_t, out, t) if self.config.prediction == "clean" else out

    def run(self, chunk: Chunk, streams, ids, memories: Sequence[Memory], attention):
        """The backbone over a chunk after some memories; `ids` [B, L] in memory order."""
        rows, columns = grid_places(self.layout.latent_grid)
        images = chunk.latent_tokens // self.layout.latents
        places = tuple(jnp.tile(jnp.asarray(p, jnp.float32), images) for p in (rows, columns))
        split = {"und": ids[:, : chunk.und_tokens], "gen": ids[:, chunk.und_tokens :]}
        context = [(memory.k, memory.v) for memory in memories]
        streams = {
            name: constrain(f"{name} tokens", x, "rows", "tokens", None) for name, x in streams.items()
        }
        return self.backbone(streams, split, places, context, attention)

    def empty_context(self, rows: int) -> Context:
        """A context in which nothing has been said yet."""
        return Context(
            prompt=Memory.empty(self.config, rows, self.layout.prompt_slots),
            history=Memory.empty(self.config, rows, context_lib.history_slots(self.layout)),
            next_id=jnp.zeros(rows, jnp.int32),
            slot=jnp.zeros((), jnp.int32),
        )

    def read(
        self,
        chunk: Chunk,
        content: Content,
        memories: Sequence[Memory],
        next_id: jax.Array,
        seen_by: Callable[[QueryGroup, Visible], Visible] | None = None,
    ) -> Pass:
        """A chunk with its content after `memories`; `seen_by` takes from what a group of queries may see."""
        if not takes_parts(self.config):
            memories = [context_lib.joined(memories)]
        valid = valid_tokens(chunk, content)
        ids, after = rotary_ids(chunk, content, next_id)
        seen = Visible(jnp.concatenate([m.visible for m in memories], axis=1), valid)
        visible_to = (lambda group: seen) if seen_by is None else functools.partial(_call, seen_by, seen)
        attention = make_attention(self.config, chunk, visible_to)
        hidden, (k, v) = self.run(chunk, self._streams(chunk, content), ids, memories, attention)
        self.sow("trace", "hidden", hidden)
        self.sow("trace", "ids", ids)
        return Pass(hidden, k, v, valid, after)

    def _streams(self, chunk: Chunk, content: Content) -> dict[str, jax.Array]:
        """The tokens of a chunk, embedded; images stand between two vision tokens."""
        rows = content.rows.shape[0]
        edges = jnp.broadcast_to(jnp.asarray([self.ids.vision_start, self.ids.vision_end]), (rows, 2))
        texts = [content.texts[s.name] if s.kind == "text" else edges for s in chunk.segments]
        streams = {"und": self.embed_text(jnp.concatenate(texts, axis=1))}
        if views := [content.views[s.name] for s in chunk.segments if s.vit]:
            streams["und"] = jnp.concatenate([streams["und"], self.embed_views(jnp.stack(views, 1))], axis=1)
        if images := [s.name for s in chunk.segments if s.latents]:
            clean = jnp.zeros(rows)
            latents = jnp.stack([content.latents[name] for name in images], axis=1)
            times = jnp.stack([content.times.get(name, clean) for name in images], axis=1)
            streams["gen"] = self.embed_latents(latents, times)
        return streams

    def read_text(self, memory: Memory, tokens: jax.Array, next_id: jax.Array) -> tuple[jax.Array, Memory]:
        """Text after `memory`: hidden states [B, T, D], and what later tokens see of it.

        `tokens` [B, T] is padded with `PAD_ID`; its first id is `next_id` [B].
        """
        chunk = Chunk([self.layout.text_slot("plan").resized(tokens.shape[1])])
        content = Content(jnp.ones(tokens.shape[0], bool), texts={"plan": tokens})
        done = self.read(chunk, content, [memory], next_id)
        return done.hidden["und"], Memory.of(done.k, done.v, done.valid)

    def read_image(
        self, memory: Memory, latents: jax.Array, next_id: jax.Array, view: jax.Array | None = None
    ) -> tuple[jax.Array, Memory]:
        """A clean image [B, N, V] after `memory`: hidden state [B, D] of its closing token, and its slots.

        Where the layout has ViT tokens, `view` [B, P, U] is read as well; the
        image takes `layout.state_ids` rotary ids.
        """
        chunk = _state_chunk(self.layout)
        views = {} if view is None else {"image_vit": view}
        content = Content(jnp.ones(latents.shape[0], bool), latents={"image": latents}, views=views)
        done = self.read(chunk, content, [memory], next_id)
        return done.hidden["und"][:, chunk.text_tokens - 1], Memory.of(done.k, done.v, done.valid)

    def velocity(self, memory: Memory, x_t: jax.Array, t: jax.Array, next_id: jax.Array) -> jax.Array:
        """The velocity [B, N, V] of a noised image at `t` [B] after `memory`."""
        content = Content(jnp.ones(x_t.shape[0], bool), latents={"image": x_t}, times={"image": t})
        done = self.read(_noised_chunk(self.layout), content, [memory], next_id)
        return self.to_velocity(done.hidden["gen"], x_t[:, None], t[:, None])[:, 0]

    # ---------------------------------------------------------- begin and step

    def begin(self, prompt: PromptInputs) -> tuple[Context, jax.Array]:
        """Reads prompts; returns the context and the hidden state [B, D] of the last token."""
        layout, rows = self.layout, prompt.text.shape[0]
        context, chunk = self.empty_context(rows), _prompt_chunk(layout)
        content = Content(
            jnp.ones(rows, bool),
            texts=prompt.texts,
            latents={"prompt_image": prompt.image},
            views={"prompt_image_vit": prompt.view},
            there=prompt.there,
        )
        done = self.read(chunk, content, [Memory.empty(self.config, rows, 0)], context.next_id)
        parts = [slots(chunk, part, done.k, done.v, done.valid) for part in layout.prompt_parts.values()]
        context = context.replace(prompt=context_lib.joined(parts), next_id=done.next_id)
        return context, self._prompt_end(chunk, content, done.hidden["und"])

    def _prompt_end(self, chunk: Chunk, content: Content, hidden: jax.Array) -> jax.Array:
        """The hidden state [B, D] of the last token of each prompt."""
        end = None
        for s in chunk.segments:
            if s.kind == "text":
                count = token_count(content.texts[s.name])
                there, last = count > 0, at_token(hidden[:, chunk.text(s.name)], count - 1)
            else:
                there, last = content.holds(s), hidden[:, chunk.text(s.name).stop - 1]
            end = last if end is None else jnp.where(there[:, None], last, end)
        return end

    def step(self, context: Context, inputs: StepInputs) -> tuple[Context, StepOutputs]:
        """One step, teacher-forced: every stage in one chunk."""
        new, next_id, outputs = self.read_step(context, inputs)
        return self.advance(context, new, inputs.present, next_id), outputs

    def read_step(
        self, context: Context, inputs: StepInputs
    ) -> tuple[dict[str, Memory], jax.Array, StepOutputs]:
        """A step's visible parts, the rotary id [B] that follows it, and its outputs."""
        chunk, content = _step_chunk(self.layout), self._step_content(inputs)
        seen_by = functools.partial(self._seen_by, chunk, inputs)
        done = self.read(chunk, content, context.memories, context.next_id, seen_by)
        outputs = self._step_outputs(chunk, inputs, content, done.hidden)
        parts = self.layout.visible_parts
        new = {name: slots(chunk, segments, done.k, done.v, done.valid) for name, segments in parts.items()}
        return new, done.next_id, outputs

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
            written = self.written(new, present)
            history = context.history.write(written, context.slot * self.layout.visible_tokens)
        next_id = jnp.where(present, next_id, context.next_id)
        return context.replace(history=history, next_id=next_id, slot=context.slot + 1)

    def written(self, new: dict[str, Memory], present: jax.Array) -> Memory:
        """What the visible parts of a step add to a `full` history; hidden where not `present` [B]."""
        return context_lib.joined([new[name] for name in self.layout.visible_parts]).only(present)

    def _step_content(self, inputs: StepInputs) -> Content:
        """The content of a step's segments; those of a corrected image are there where it refines."""
        latents, times = {"sketch": inputs.sketch, "refined": inputs.refined}, {}
        there = {s.name: inputs.refines for s in self.layout.step_segments if s.name.startswith("refined")}
        for name in ("sketch", "refined"):
            noised, t = getattr(inputs, f"{name}_noised"), getattr(inputs, f"{name}_t")
            latents |= {f"{name}_noised_{i}": noised[:, i] for i in range(noised.shape[1])}
            times |= {f"{name}_noised_{i}": t[:, i] for i in range(noised.shape[1])}
        there |= {name: there.get(name, inputs.present) & given for name, given in inputs.there.items()}
        views = {"sketch_vit": inputs.sketch_view, "refined_vit": inputs.refined_view}
        return Content(inputs.present, inputs.texts, latents, times, views, there)

    def _seen_by(self, chunk: Chunk, inputs: StepInputs, group: QueryGroup, seen: Visible) -> Visible:
        """Conditioning dropout: what a flow target may not see, taken from its visible keys.

        The newest text is the refine instruction for a corrected image, else
        the plan, else (single pass) the newest text of the prompt.
        """
        if not group.noised:
            return seen
        text, images = inputs.hide_text[:, None], inputs.hide_images[:, None]

        def of_part(part):
            return jnp.asarray(members(chunk, self.layout.visible_parts[part]))

        context = seen.context & ~(images & jnp.asarray(context_lib.image_slots(self.layout))[None])
        if group.names[0].startswith("refined"):
            hidden = text & of_part("refine") | images & of_part("sketch")
        else:
            hidden = text & of_part("plan")
            no_plan = (token_count(inputs.plan) == 0)[:, None]
            context = context & ~(text & no_plan & context_lib.newest_prompt_text(self.layout, seen.context))
        return Visible(context, seen.chunk & ~hidden)

    def _step_outputs(
        self, chunk: Chunk, inputs: StepInputs, content: Content, hidden: dict[str, jax.Array]
    ) -> StepOutputs:
        und, first = hidden["und"], chunk.und_tokens

        def velocity(name, x_t, t):
            slices = [chunk.latents(f"{name}_noised_{i}") for i in range(x_t.shape[1])]
            parts = [hidden["gen"][:, s.start - first : s.stop - first] for s in slices]
            return self.to_velocity(jnp.concatenate(parts, axis=1), x_t, t)

        def closing(segment):
            return und[:, chunk.text(segment).stop - 1]

        def end(name):
            state, *view = self.layout.visible_parts[name]
            if view and view[0].name in inputs.there:
                there = inputs.there[view[0].name][:, None]
                return jnp.where(there, closing(view[0].name), closing(state.name))
            return closing((view or [state])[0].name)

        def noised_end(name):
            copies = getattr(inputs, f"{name}_noised").shape[1]
            return jnp.stack([closing(f"{name}_noised_{i}") for i in range(copies)], axis=1)

        return StepOutputs(
            **{name: und[:, chunk.text(name)] for name in ("plan", "inspect", "refine")},
            sketch_end=end("sketch"),
            refined_end=end("refined"),
            sketch_noised_end=noised_end("sketch"),
            refined_noised_end=noised_end("refined"),
            sketch_velocity=velocity("sketch", inputs.sketch_noised, inputs.sketch_t),
            refined_velocity=velocity("refined", inputs.refined_noised, inputs.refined_t),
        )

    def __call__(self, batch: Batch) -> jax.Array:
        """Touches every parameter with the first step of a batch; `init` calls it."""
        layout, rows = self.layout, batch.present.shape[0]
        image = jnp.zeros((rows, layout.latents, layout.latent_values))
        sketch_noised = jnp.repeat(image[:, None], layout.sketch_copies, 1)
        refined_noised = jnp.repeat(image[:, None], layout.refined_copies, 1)
        never, view = jnp.zeros(rows, bool), None
        if layout.vit_tokens:
            view = jnp.zeros((rows, layout.vit_tokens, 3 * self.config.vit.patch**2))
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
            sketch_view=view,
            refined_view=view,
        )
        instruction = batch.instruction_tokens[:, 0] if layout.instruction else None
        prompt = PromptInputs(batch.prompt_tokens[:, 0], image, view, instruction)
        context, _ = self.begin(prompt)
        _, outputs = self.step(context, inputs)
        return self.logits(outputs.plan)


def _call(seen_by: Callable[..., Visible], seen: Visible, group: QueryGroup) -> Visible:
    return seen_by(group, seen)


@functools.cache
def _prompt_chunk(layout: Layout) -> Chunk:
    return Chunk(layout.prompt_segments)


@functools.cache
def _step_chunk(layout: Layout) -> Chunk:
    return Chunk(layout.step_segments)


@functools.cache
def _state_chunk(layout: Layout) -> Chunk:
    return Chunk(layout.state_slots("image"))


@functools.cache
def _noised_chunk(layout: Layout) -> Chunk:
    return Chunk([layout.image_slot("image", "noised")])
