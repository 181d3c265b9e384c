"""The unified model: `begin` reads a prompt, `step` goes through one turn: text, image, text.

    context          = begin(params, prompt)
    context, outputs = step(params, context, turn)

is the definition. Training computes the same for all turns of a row at once, layer by
layer (`forward_rows`, `process_gen.models.unroll`). Sampling makes the same turn out of
the same pieces, `extend_text`, `extend_image` and `velocity`, with its own text and
images (`process_gen.sampling`).

B rows, S turn slots, R prompts of a row, T tokens of a text slot, J noised copies, I
latent tokens and P ViT tokens of an image, C channels of a latent token, U values of a
ViT patch, D width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from process_gen.models import attention as attention_lib
from process_gen.models import flow, vit
from process_gen.models.assembly import Content, at_token, positions, taken, token_count, token_mask
from process_gen.models.attention import RowMasks
from process_gen.models.backbone import Backbone
from process_gen.models.cache import Context, KVCache, visible_pieces
from process_gen.models.config import ModelConfig
from process_gen.models.embedding import lookup
from process_gen.models.layers import annotated, linear
from process_gen.models.likelihood import chunked_cross_entropy, cross_entropy
from process_gen.models.partition import constrain
from process_gen.models.positions import grid_places, sincos_table, timestep_features
from process_gen.models.turn_io import PromptInputs, TurnInputs, TurnOutputs
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import Chunk


class Pass(NamedTuple):
    """A chunk gone through the backbone.

    Attributes:
      hidden: {"und": [B, T, D], "gen": [B, G, D]} after the final norms.
      k, v: of the chunk, [layers, B, L, K, H].
      mask: [B, L] bool as in memory, tokens that are there.
      position: [B] int32, the rotary position that follows.
    """

    hidden: dict[str, jax.Array]
    k: jax.Array
    v: jax.Array
    mask: jax.Array
    position: jax.Array


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
        """[B, T] ids to [B, T, D]; padding, which nothing sees, takes the first row."""
        c, tokens = self.config, jnp.maximum(tokens, 0)
        if c.logits_in_chunks:
            return lookup(self.embedding, tokens, c.logit_chunk, c.dtype)
        return jnp.take(self.embedding, tokens, axis=0).astype(jnp.dtype(c.dtype))

    def embed_latents(self, latents: jax.Array, t: jax.Array) -> jax.Array:
        """Latent tokens [B, J, I, C] at timesteps [B, J] to [B, J * I, D]."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        time = timestep_features(t * c.time_scale).astype(dtype)
        time = self.time_out(nn.silu(self.time_in(time)))[:, :, None]
        x = self.latent_in(latents.astype(dtype)) + time + self._latent_table().astype(dtype)[None, None]
        return x.reshape(x.shape[0], -1, c.width)

    def embed_vit(self, patches: jax.Array) -> jax.Array:
        """What the ViT sees of clean images, patches [B, J, P, U], to tokens [B, J * P, D]."""
        pictures = constrain("ViT patches", patches.reshape(-1, *patches.shape[2:]), "rows", None, None)
        x = self.connector(self.vit(pictures))
        return x.reshape(patches.shape[0], -1, self.config.width)

    def _latent_table(self) -> jax.Array:
        """Positions of an image's latent tokens, [I, D]."""
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
        """Hidden latent tokens [B, J * I, D] to velocities shaped like x_t, float32."""
        out = self.latent_out(hidden).astype(jnp.float32).reshape(x_t.shape)
        return flow.velocity_from_clean(x_t, out, t) if self.config.prediction == "clean" else out

    def run(self, streams, positions, context, attention, keep_kv: bool = True):
        """The backbone over tokens by stream, `positions` likewise, after a context."""
        images = streams["gen"].shape[1] // self.layout.latents if "gen" in streams else 0
        places = tuple(
            jnp.tile(jnp.asarray(p, jnp.float32), images) for p in grid_places(self.layout.latent_grid)
        )
        streams = {
            name: constrain(f"{name} tokens", x, "rows", "tokens", None) for name, x in streams.items()
        }
        return self.backbone(streams, positions, places, context, attention, keep_kv)

    def empty_context(self, rows: int) -> Context:
        """A context in which nothing has been said yet."""
        return Context.empty(self.config, self.layout, rows)

    def forward_chunk(
        self, chunk: Chunk, content: Content, history: KVCache, context: Sequence[KVCache], start: jax.Array
    ) -> Pass:
        """A chunk with its content from the position `start` [B] on, after a history and what came since."""
        mask = token_mask(chunk, content)
        found, end = positions(chunk, content, start)
        before = jnp.concatenate([mask[:, :0], *(c.mask for c in context)], axis=1)
        attention = attention_lib.of_chunk(
            self.config, chunk, mask, history.mask, self.layout.visible_tokens, before
        )
        pairs = [(c.k, c.v) for c in (history, *context)]
        streams = _by_stream(chunk, found)
        embedded = self._embedded(chunk, content, self.embed_text(self._words(chunk, content)))
        hidden, (k, v) = self.run(embedded, streams, pairs, attention)
        return Pass(hidden, k, v, mask, end)

    def _words(self, chunk: Chunk, content: Content) -> jax.Array:
        """The ids [B, T] of a chunk; images stand between two vision tokens."""
        edges = jnp.asarray([self.ids.vision_start, self.ids.vision_end])
        edges = jnp.broadcast_to(edges, (content.present.shape[0], 2))
        texts = [content.texts[s.name] if s.kind == "text" else edges for s in chunk.segments]
        return jnp.concatenate(texts, axis=1)

    def _embedded(self, chunk: Chunk, content: Content, words: jax.Array) -> dict[str, jax.Array]:
        """The tokens of a chunk by stream; `words` [B, T, D] are its ids, embedded."""
        rows, streams = content.present.shape[0], {"und": words}
        if patches := [content.vit[s.name] for s in chunk.segments if s.vit]:
            streams["und"] = jnp.concatenate([streams["und"], self.embed_vit(jnp.stack(patches, 1))], axis=1)
        if images := [s.name for s in chunk.segments if s.latents]:
            clean = jnp.zeros(rows)
            latents = jnp.stack([content.latents[name] for name in images], axis=1)
            times = jnp.stack([content.times.get(name, clean) for name in images], axis=1)
            streams["gen"] = self.embed_latents(latents, times)
        return streams

    # ------------------------------------------------- pieces of a turn, for the sampler

    def extend_text(
        self, history: KVCache, context: Sequence[KVCache], tokens: jax.Array, start: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """Text after a context: hidden states [B, T, D], and what later tokens see of it.

        `tokens` [B, T] is padded with `PAD_ID`; its first position is `start` [B].
        """
        chunk = _text_chunk(tokens.shape[1])
        content = Content(jnp.ones(tokens.shape[0], bool), texts={"text": tokens})
        done = self.forward_chunk(chunk, content, history, context, start)
        return done.hidden["und"], taken(chunk.memory("text"), done.k, done.v, done.mask)

    def extend_image(
        self,
        history: KVCache,
        context: Sequence[KVCache],
        latents: jax.Array,
        patches: jax.Array | None,
        start: jax.Array,
    ) -> tuple[jax.Array, KVCache]:
        """A clean image [B, I, C] after a context: hidden state [B, D] of its closing token, and its keys.

        Where the layout has ViT tokens, `patches` [B, P, U] are read as well; the
        image takes `layout.state_ids` positions.
        """
        chunk = _state_chunk(self.layout)
        seen = {} if patches is None else {"image_vit": patches}
        content = Content(jnp.ones(latents.shape[0], bool), latents={"image": latents}, vit=seen)
        done = self.forward_chunk(chunk, content, history, context, start)
        pieces = chunk.memory(*(s.name for s in chunk.segments))
        return done.hidden["und"][:, chunk.text_tokens - 1], taken(pieces, done.k, done.v, done.mask)

    def velocity(
        self, history: KVCache, context: Sequence[KVCache], x_t: jax.Array, t: jax.Array, position: jax.Array
    ) -> jax.Array:
        """The velocity [B, I, C] of a noised image at `t` [B] after a context."""
        content = Content(jnp.ones(x_t.shape[0], bool), latents={"image": x_t}, times={"image": t})
        done = self.forward_chunk(_noised_chunk(self.layout), content, history, context, position)
        return self.to_velocity(done.hidden["gen"], x_t[:, None], t[:, None])[:, 0]

    # ---------------------------------------------------------- begin and step

    def begin(self, prompt: PromptInputs) -> tuple[Context, jax.Array]:
        """Reads prompts; returns the context and the hidden state [B, D] of the last token."""
        rows, chunk = prompt.text.shape[0], _prompt_chunk(self.layout)
        context, content = self.empty_context(rows), self._prompt_content(prompt)
        nothing = KVCache.empty(self.config, rows, 0)
        done = self.forward_chunk(chunk, content, nothing, (), context.position)
        parts = [chunk.memory(*(s.name for s in part)) for part in self.layout.prompt_parts.values()]
        cache = taken([piece for part in parts for piece in part], done.k, done.v, done.mask)
        context = context.replace(prompt=cache, position=done.position)
        return context, self._prompt_end(chunk, content, done.hidden["und"])

    def step(self, context: Context, turn: TurnInputs) -> tuple[Context, TurnOutputs]:
        """One turn, teacher-forced, in one chunk."""
        chunk, content = _turn_chunk(self.layout), self._turn_content(turn)
        seen = context.seen(self.layout, turn.refines)
        done = self.forward_chunk(chunk, content, seen, [context.prompt], context.position)
        new = taken(visible_pieces(self.layout, chunk), done.k, done.v, done.mask)
        context = context.pushed(self.layout, new, turn.present, turn.refines, done.position)
        return context, self._turn_outputs(chunk, turn, content, done.hidden)

    def forward_rows(
        self, prompts: PromptInputs, turns: TurnInputs, prompt_index: jax.Array, is_first: jax.Array
    ) -> tuple[jax.Array, TurnOutputs]:
        """What `begin` and `step` give for rows of turns, all turns at once in every layer.

        Projections and MLPs go over all tokens of a row, attention turn by turn over
        the keys of its prompt and of the turns before it.

        Args:
          prompts: [B, R, ...].
          turns: [B, S, ...].
          prompt_index: [B, S] int32, which prompt a turn draws.
          is_first: [B, S] bool, where a trajectory begins.

        Returns:
          The hidden state [B, R, D] of the last token of each prompt, and outputs [B, S, ...].
        """
        layout, rows = self.layout, prompt_index.shape[0]
        chunks = (_prompt_chunk(layout), _turn_chunk(layout))
        flat = [_flat(prompts, 2), _flat(turns, 2)]
        contents = (self._prompt_content(flat[0]), self._turn_content(flat[1]))
        pairs = list(zip(chunks, contents, strict=True))
        masks = [token_mask(*pair).reshape(rows, -1, pair[0].tokens) for pair in pairs]
        starts = [jnp.zeros_like(content.present, jnp.int32) for content in contents]
        places, lengths = zip(*map(positions, chunks, contents, starts), strict=True)
        start = _turn_starts(*(x.reshape(rows, -1) for x in lengths), prompt_index, is_first)
        places = (places[0], places[1] + start.reshape(-1, 1))

        def whole(parts: Sequence[Mapping[str, jax.Array]]) -> dict[str, jax.Array]:
            """Arrays [B * slots, tokens, ...] of prompts and of turns by stream, to [B, all tokens, ...]."""
            names = [name for name in ("und", "gen") if any(name in part for part in parts)]
            return {
                name: jnp.concatenate(
                    [x[name].reshape(rows, -1, *x[name].shape[2:]) for x in parts if name in x], axis=1
                )
                for name in names
            }

        def apart(x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
            """[B, all tokens, ...] to [B * slots, tokens, ...] of prompts and turns, `sizes` tokens each."""
            cut, slots = layout.trajectories * sizes[0], (layout.trajectories, layout.turns)
            parts = zip((x[:, :cut], x[:, cut:]), slots, sizes, strict=True)
            return [part.reshape(rows * count, size, *x.shape[2:]) for part, count, size in parts]

        # One look-up of all words, so that the gradient of their table is reduced once.
        ids = [self._words(*pair) for pair in pairs]
        words = self.embed_text(whole([{"und": x} for x in ids])["und"])
        words = apart(words, [x.shape[1] for x in ids])
        streams = whole([self._embedded(*pair, x) for pair, x in zip(pairs, words, strict=True)])
        by_stream = [_by_stream(*pair) for pair in zip(chunks, places, strict=True)]
        attention = attention_lib.of_rows(
            self.config,
            layout,
            *chunks,
            RowMasks(*masks, prompt_index, turns.present, turns.refines),
        )
        hidden, _ = self.run(streams, whole(by_stream), (), attention, keep_kv=False)
        of_prompts, of_turns = {}, {}
        for name, x in hidden.items():
            sizes = [c.und_tokens if name == "und" else c.latent_tokens for c in chunks]
            of_prompts[name], of_turns[name] = apart(x, sizes)
        self.sow("trace", "prompt", {"hidden": of_prompts, "positions": by_stream[0]})
        self.sow("trace", "turn", {"hidden": of_turns, "positions": by_stream[1]})
        end = self._prompt_end(chunks[0], contents[0], of_prompts["und"])
        outputs = self._turn_outputs(chunks[1], flat[1], contents[1], of_turns)
        return end.reshape(rows, -1, end.shape[-1]), jax.tree.map(
            lambda x: x.reshape(rows, layout.turns, *x.shape[1:]), outputs
        )

    def _prompt_content(self, prompt: PromptInputs) -> Content:
        names = [s.name for s in self.layout.prompt_parts.get("prompt_image", ())]
        exists = {} if prompt.has_image is None else dict.fromkeys(names, prompt.has_image)
        return Content(
            jnp.ones(prompt.text.shape[0], bool),
            texts={"prompt": prompt.text, "instruction": prompt.instruction},
            latents={"prompt_image": prompt.image},
            vit={"prompt_image_vit": prompt.vit},
            exists=exists,
            keep=prompt.keep,
        )

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

    def _turn_content(self, turn: TurnInputs) -> Content:
        copies = range(self.layout.copies)
        return Content(
            turn.present,
            texts={"before": turn.before, "after": turn.after},
            latents={"image": turn.image} | {f"noised_{i}": turn.noised[:, i] for i in copies},
            times={f"noised_{i}": turn.t[:, i] for i in copies},
            vit={"image_vit": turn.vit},
            exists=turn.exists,
            keep=turn.keep,
        )

    def _turn_outputs(
        self, chunk: Chunk, turn: TurnInputs, content: Content, hidden: dict[str, jax.Array]
    ) -> TurnOutputs:
        und, layout = hidden["und"], self.layout

        def text(name: str) -> jax.Array:
            return und[:, chunk.text(name)] if layout.visible_parts[name] else und[:, :0]

        def closing(name: str) -> jax.Array:
            return und[:, chunk.text(name).stop - 1]

        noised = [f"noised_{i}" for i in range(layout.copies)]
        latents = [chunk.latents(name) for name in noised]
        gen = jnp.concatenate(
            [hidden["gen"][:, s.start - chunk.und_tokens : s.stop - chunk.und_tokens] for s in latents],
            axis=1,
        )
        end = closing("image")
        if layout.vit_tokens:
            _, seen = layout.state_slots("image")
            end = jnp.where(content.holds(seen)[:, None], closing(seen.name), end)
        return TurnOutputs(
            before=text("before"),
            after=text("after"),
            image_end=end,
            noised_end=jnp.stack([closing(name) for name in noised], axis=1),
            velocity=self.to_velocity(gen, turn.noised, turn.t),
        )

    def __call__(self, batch: Batch) -> jax.Array:
        """Touches every parameter with the first turn of a batch; `init` calls it."""
        layout, rows = self.layout, batch.present.shape[0]
        image = jnp.zeros((rows, layout.latents, layout.latent_values))
        noised, patches = jnp.repeat(image[:, None], layout.copies, 1), None
        if layout.vit_tokens:
            patches = jnp.zeros((rows, layout.vit_tokens, 3 * self.config.vit.patch**2))
        turn = TurnInputs(
            present=batch.present[:, 0],
            refines=batch.refines[:, 0],
            before=batch.before_tokens[:, 0],
            after=batch.after_tokens[:, 0],
            image=image,
            noised=noised,
            t=noised[:, :, 0, 0],
            vit=patches,
        )
        instruction = batch.instruction_tokens[:, 0] if layout.instruction else None
        context, end = self.begin(PromptInputs(batch.prompt_tokens[:, 0], image, patches, instruction))
        _, outputs = self.step(context, turn)
        return self.logits(end)


def _flat(tree: Any, axes: int) -> Any:
    """The first axes of all arrays as one."""
    return jax.tree.map(lambda x: x.reshape(math.prod(x.shape[:axes]), *x.shape[axes:]), tree)


def _by_stream(chunk: Chunk, x: jax.Array) -> dict[str, jax.Array]:
    """Tokens [B, L, ...] of a chunk, as in memory, by stream."""
    und = {"und": x[:, : chunk.und_tokens]}
    return und | ({"gen": x[:, chunk.und_tokens :]} if chunk.latent_tokens else {})


def _turn_starts(
    prompts: jax.Array, turns: jax.Array, prompt_index: jax.Array, is_first: jax.Array
) -> jax.Array:
    """First rotary positions of turns, [B, S], from the lengths of prompts [B, R] and turns [B, S]."""
    before = jnp.cumsum(turns, axis=1) - turns
    first = jax.lax.cummax(jnp.where(is_first, before, 0), axis=1)
    return jnp.take_along_axis(prompts, prompt_index, axis=1) + before - first


@functools.cache
def _prompt_chunk(layout: Layout) -> Chunk:
    return Chunk(layout.prompt_segments)


@functools.cache
def _turn_chunk(layout: Layout) -> Chunk:
    return Chunk(layout.turn_segments)


@functools.cache
def _state_chunk(layout: Layout) -> Chunk:
    return Chunk(layout.state_slots("image"))


@functools.cache
def _noised_chunk(layout: Layout) -> Chunk:
    return Chunk([layout.image_slot("image", "noised")])


@functools.cache
def _text_chunk(tokens: int) -> Chunk:
    return Chunk([Segment("text", "text", tokens)])
