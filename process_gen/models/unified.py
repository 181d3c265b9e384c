"""The unified model: `prefill` reads a prompt, `step` processes one turn (text, image, text).

    context          = prefill(params, prompt)
    context, outputs = step(params, context, turn, refines)

are its definition. Training computes the same for all turns of a row at once, layer by layer
(`forward_rows`, `process_gen.models.unroll`). Sampling runs a turn in pieces, one text or
image at a time (`forward_chunk`, `process_gen.sampling.extend`).

B rows, S turn slots, R prompts of a row, L tokens of a chunk, T tokens of a text slot, J
noised copies, I latent tokens and P ViT tokens of an image, C channels of a latent token,
U values of a ViT patch, Y layers, D width, K key/value heads, H head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from process_gen.models import flow, vit
from process_gen.models.attention import (
    RowMasks,
    by_stream,
    chunk_attention,
    join_slots,
    row_attention,
    split_slots,
)
from process_gen.models.backbone import Backbone
from process_gen.models.cache import Context, KVCache, chunk_slices
from process_gen.models.config import ModelConfig
from process_gen.models.content import (
    ChunkInputs,
    at_token,
    positions,
    prompt_inputs,
    token_count,
    token_mask,
    turn_inputs,
)
from process_gen.models.layers import annotated, linear
from process_gen.models.partition import constrain
from process_gen.models.positions import grid_places, sincos_table, table_rows, timestep_features
from process_gen.models.vocabulary import chunked_cross_entropy, cross_entropy, lookup
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.visibility import Chunk, chunk_of


class ChunkOutput(NamedTuple):
    """What the backbone gives for a chunk.

    Attributes:
      hidden: {"und": [B, tokens, D], "gen": [B, tokens, D]} after the final norms.
      k, v: keys and values of the chunk, [Y, B, L, K, H].
      mask: [B, L] bool in packed order, tokens that are present.
      position: [B] int32, the rotary position that follows the chunk.
    """

    hidden: dict[str, jax.Array]
    k: jax.Array
    v: jax.Array
    mask: jax.Array
    position: jax.Array

    def cache(self, pieces: Sequence[slice]) -> KVCache:
        """The KV cache of some of the chunk's tokens: those in `pieces`, in their order."""
        k, v = (jnp.concatenate([x[:, :, s] for s in pieces], axis=2) for x in (self.k, self.v))
        mask = jnp.concatenate([self.mask[:, s] for s in pieces], axis=1)
        return KVCache(jnp.moveaxis(k, 3, 2), jnp.moveaxis(v, 3, 2), mask)


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
            init = annotated(nn.initializers.normal(1.0), "position", "embed")
            self.latent_positions = self.param("latent_positions", init, (c.max_latent_side**2, c.width))
        self.head = linear(c.vocab_size, ("embed", "vocab"), c, adapters=False)
        self.latent_in = linear(c.width, ("latent", "embed"), c, bias=True)
        self.latent_out = linear(self.layout.latent_values, ("embed", "latent"), c, bias=True, scale=0.0)
        if self.layout.vit_tokens:
            self.vit = vit.Vit(c, self.layout.vit_grid)
            self.connector = vit.Connector(c, self.layout.vit_grid)
        self.time_in = linear(c.width, ("time", "mlp"), c, bias=True)
        self.time_out = linear(c.width, ("mlp", "embed"), c, bias=True)

    # ------------------------------------------------------------------ pieces

    def embed_text(self, tokens: jax.Array) -> jax.Array:
        """Ids [B, tokens] to [B, tokens, D]; padding, which nothing sees, takes the first row."""
        c, tokens = self.config, jnp.maximum(tokens, 0)
        if c.logits_in_chunks:
            return lookup(self.embedding, tokens, c.logit_chunk, c.dtype)
        return jnp.take(self.embedding, tokens, axis=0).astype(jnp.dtype(c.dtype))

    def embed_latents(self, latents: jax.Array, t: jax.Array) -> jax.Array:
        """Latent tokens [B, images, I, C] at timesteps [B, images] to [B, images * I, D]."""
        c, dtype, grid = self.config, jnp.dtype(self.config.dtype), self.layout.latent_grid
        time = timestep_features(t * c.time_scale).astype(dtype)
        time = self.time_out(nn.silu(self.time_in(time)))[:, :, None]
        x = self.latent_in(latents.astype(dtype)) + time
        if c.latent_positions == "learned":
            table = self.latent_positions[table_rows(grid, c.max_latent_side)]
        else:
            table = jnp.asarray(sincos_table(c.width, grid_places(grid)))
        x = x + table.astype(dtype)[None, None]
        return x.reshape(x.shape[0], -1, c.width)

    def embed_vit(self, patches: jax.Array) -> jax.Array:
        """ViT patches [B, images, P, U] of clean images to tokens [B, images * P, D]."""
        pictures = constrain("ViT patches", patches.reshape(-1, *patches.shape[2:]), "rows", None, None)
        x = self.connector(self.vit(pictures))
        return x.reshape(patches.shape[0], -1, self.config.width)

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
        """Hidden states of latent tokens [B, J * I, D] to velocities shaped like x_t, float32."""
        out = self.latent_out(hidden).astype(jnp.float32).reshape(x_t.shape)
        return flow.velocity_from_clean(x_t, out, t) if self.config.prediction == "clean" else out

    def run_backbone(self, streams, positions, context, attention, keep_kv: bool = True):
        """Calls the `Backbone` with embedded tokens by stream; adds row and column of every latent token."""
        images = streams["gen"].shape[1] // self.layout.latents if "gen" in streams else 0
        grid = grid_places(self.layout.latent_grid)
        places = tuple(jnp.tile(jnp.asarray(x, jnp.float32), images) for x in grid)
        streams = {n: constrain(f"{n} tokens", x, "rows", "tokens", None) for n, x in streams.items()}
        return self.backbone(streams, positions, places, context, attention, keep_kv)

    def forward_chunk(
        self, chunk: Chunk, content: ChunkInputs, context: Sequence[KVCache], start: jax.Array
    ) -> ChunkOutput:
        """Runs a chunk from rotary position `start` [B] on, after a context: caches, the history first."""
        mask = token_mask(chunk, content)
        rotary, end = positions(chunk, content, start)
        masks, block = [cache.mask for cache in context], self.layout.visible_tokens
        attention = chunk_attention(self.config, chunk, mask, masks, block)
        streams = self._embed(chunk, content, self.embed_text(self._token_ids(chunk, content)))
        kvs = [(cache.k, cache.v) for cache in context]
        hidden, (k, v) = self.run_backbone(streams, by_stream(chunk, rotary), kvs, attention)
        return ChunkOutput(hidden, k, v, mask, end)

    def _token_ids(self, chunk: Chunk, content: ChunkInputs) -> jax.Array:
        """The vocabulary ids [B, tokens] of a chunk: its texts, and the two vision tokens of each image."""
        vision = jnp.asarray([self.ids.vision_start, self.ids.vision_end])
        vision = jnp.broadcast_to(vision, (content.present.shape[0], 2))
        ids = [content.texts[s.name] if s.kind == "text" else vision for s in chunk.segments]
        return jnp.concatenate(ids, axis=1)

    def _embed(self, chunk: Chunk, content: ChunkInputs, tokens: jax.Array) -> dict[str, jax.Array]:
        """Embeds a chunk, by stream; `tokens` [B, tokens, D] are its `_token_ids`, already embedded."""
        streams = {"und": tokens}
        if patches := [content.vit[s.name] for s in chunk.segments if s.vit]:
            streams["und"] = jnp.concatenate([tokens, self.embed_vit(jnp.stack(patches, 1))], axis=1)
        if images := [s.name for s in chunk.segments if s.latents]:
            clean = jnp.zeros(content.present.shape[0])
            latents = jnp.stack([content.latents[name] for name in images], axis=1)
            times = jnp.stack([content.times.get(name, clean) for name in images], axis=1)
            streams["gen"] = self.embed_latents(latents, times)
        return streams

    # ---------------------------------------------------------- prefill and step

    def prefill(self, prompt: ChunkInputs) -> tuple[Context, jax.Array]:
        """Reads prompts; returns the context and the hidden state [B, D] at each prompt's last token."""
        rows, chunk = len(prompt.present), chunk_of(self.layout.prompt_segments)
        context = Context.empty(self.config, self.layout, rows)
        no_history = KVCache.empty(self.config, rows, 0)
        out = self.forward_chunk(chunk, prompt, [no_history], context.position)
        cache = out.cache(chunk_slices(chunk, self.layout.prompt_parts))
        context = context.replace(prompt=cache, position=out.position)
        return context, self._prompt_end(chunk, prompt, out.hidden["und"])

    def step(
        self, context: Context, turn: ChunkInputs, refines: jax.Array
    ) -> tuple[Context, dict[str, jax.Array]]:
        """Runs one teacher-forced turn as one chunk; `refines` [B] bool says which are refine turns.

        Returns:
          The context after it, and what losses read: hidden states `before` and `after`
          [B, T, D] of the texts, `image_end` [B, D] at the last vision token of the clean
          image (after its ViT tokens, if present), `noised_end` [B, J, D] at that of each
          noised copy; and the `velocity` [B, J, I, C].
        """
        chunk = chunk_of(self.layout.turn_segments)
        seen = [context.seen(self.layout, refines), context.prompt]
        out = self.forward_chunk(chunk, turn, seen, context.position)
        cache = out.cache(chunk_slices(chunk, self.layout.visible_parts))
        context = context.with_turn(self.layout, cache, turn.present, refines, out.position)
        return context, self._turn_outputs(chunk, turn, out.hidden)

    def forward_rows(
        self,
        prompts: ChunkInputs,
        turns: ChunkInputs,
        prompt_index: jax.Array,
        is_first: jax.Array,
        refines: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes `prefill` and `step` for packed rows, all turns at once in every layer.

        Projections and MLPs run over all tokens of a row. Attention runs turn by turn, over
        the keys of the turn, of its prompt and of the turns before it.

        Args:
          prompts: [B, R, ...].
          turns: [B, S, ...].
          prompt_index: [B, S] int32, which prompt a turn draws.
          is_first, refines: [B, S] bool, where a trajectory begins, and refine turns.

        Returns:
          The hidden state [B, R, D] at each prompt's last token, and the outputs of `step`, [B, S, ...].
        """
        layout, rows = self.layout, len(is_first)

        def by_slot(x: jax.Array) -> jax.Array:
            """The inverse of `_flat`."""
            return x.reshape(rows, len(x) // rows, *x.shape[1:])

        def join_streams(parts: Sequence[Mapping[str, jax.Array]]) -> dict[str, jax.Array]:
            """Streams of prompts and of turns, [B * slots, tokens, ...], to streams [B, all tokens, ...]."""
            return {
                name: join_slots([by_slot(part[name]) for part in parts if name in part])
                for name in parts[1]  # turns have both streams
            }

        # Two of each: one for all prompts, one for all turns.
        chunks = chunk_of(layout.prompt_segments), chunk_of(layout.turn_segments)
        contents = _flat(prompts), _flat(turns)
        pairs = list(zip(chunks, contents, strict=True))
        masks = [by_slot(token_mask(*pair)) for pair in pairs]
        zeros = [jnp.zeros_like(content.present, jnp.int32) for content in contents]
        rotary, lengths = zip(*map(positions, chunks, contents, zeros), strict=True)
        start = _turn_starts(*map(by_slot, lengths), prompt_index, is_first)
        rotary = rotary[0], rotary[1] + start.reshape(-1, 1)
        rotary = [by_stream(*pair) for pair in zip(chunks, rotary, strict=True)]
        # One look-up for all tokens, so that the gradient of the embedding is reduced over devices once.
        ids = [self._token_ids(*pair) for pair in pairs]
        tokens = self.embed_text(join_slots([by_slot(x) for x in ids]))
        tokens = _flat(split_slots(layout, tokens, [x.shape[1] for x in ids]))
        streams = join_streams([self._embed(*pair, x) for pair, x in zip(pairs, tokens, strict=True)])
        row_masks = RowMasks(*masks, prompt_index, turns.present, refines)
        attention = row_attention(self.config, layout, *chunks, row_masks)
        hidden, _ = self.run_backbone(streams, join_streams(rotary), (), attention, keep_kv=False)
        hidden_prompts, hidden_turns = {}, {}
        for name, x in hidden.items():
            parts = split_slots(layout, x, [chunk.stream_tokens[name] for chunk in chunks])
            hidden_prompts[name], hidden_turns[name] = _flat(parts)
        self.sow("trace", "prompt", {"hidden": hidden_prompts, "positions": rotary[0]})
        self.sow("trace", "turn", {"hidden": hidden_turns, "positions": rotary[1]})
        end = self._prompt_end(chunks[0], contents[0], hidden_prompts["und"])
        outputs = self._turn_outputs(chunks[1], contents[1], hidden_turns)
        return by_slot(end), {name: by_slot(x) for name, x in outputs.items()}

    def _prompt_end(self, chunk: Chunk, content: ChunkInputs, hidden: jax.Array) -> jax.Array:
        """The hidden state [B, D] of the last token of each prompt."""
        end = None
        for s in chunk.segments:
            if s.kind == "text":
                count = token_count(content.texts[s.name])
                present, last = count > 0, at_token(hidden[:, chunk.text[s.name]], count - 1)
            else:
                present, last = content.tokens_present(s), hidden[:, chunk.text[s.name].stop - 1]
            end = last if end is None else jnp.where(present[:, None], last, end)
        return end

    def _turn_outputs(
        self, chunk: Chunk, turn: ChunkInputs, hidden: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """The outputs of `step`, given the hidden states of a turn by stream."""
        und, layout = hidden["und"], self.layout

        def text(name: str) -> jax.Array:
            return und[:, chunk.text.get(name, slice(0))]  # of no tokens if the layout has no such slot

        def closing(name: str) -> jax.Array:
            return und[:, chunk.text[name].stop - 1]

        noised = [f"noised_{j}" for j in range(layout.copies)]
        places = [chunk.latents[name] for name in noised]
        gen = [hidden["gen"][:, s.start - chunk.und_tokens : s.stop - chunk.und_tokens] for s in places]
        x_t, t = (jnp.stack([x[name] for name in noised], axis=1) for x in (turn.latents, turn.times))
        image_end = closing("image")
        if layout.vit_tokens:
            _, last = layout.state_slots("image")
            image_end = jnp.where(turn.tokens_present(last)[:, None], closing(last.name), image_end)
        return {
            "before": text("before"),
            "after": text("after"),
            "image_end": image_end,
            "noised_end": jnp.stack([closing(name) for name in noised], axis=1),
            "velocity": self.to_velocity(jnp.concatenate(gen, axis=1), x_t, t),
        }

    def __call__(self, batch: Batch) -> jax.Array:
        """Touches every parameter with the first turn of a batch; `init` calls it."""
        layout, rows = self.layout, batch.present.shape[0]
        image, patches = jnp.zeros((rows, layout.latents, layout.latent_values)), None
        if layout.vit_tokens:
            patches = jnp.zeros((rows, layout.vit_tokens, 3 * self.config.vit.patch**2))
        instruction = batch.instruction_tokens[:, 0] if layout.instruction else None
        context, end = self.prefill(prompt_inputs(batch.prompt_tokens[:, 0], image, patches, instruction))
        noised = jnp.repeat(image[:, None], layout.copies, 1)
        texts = (x[:, 0] for x in (batch.present, batch.before_tokens, batch.after_tokens))
        turn = turn_inputs(*texts, image, noised, noised[:, :, 0, 0], patches)
        self.step(context, turn, batch.refines[:, 0])
        return self.logits(end)


def _flat(tree: Any) -> Any:
    """Arrays [B, S, ...] with rows and slots as one axis."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def _turn_starts(
    prompt_lengths: jax.Array, turn_lengths: jax.Array, prompt_index: jax.Array, is_first: jax.Array
) -> jax.Array:
    """First rotary positions of turns, [B, S], from the lengths of prompts [B, R] and turns [B, S]."""
    before = jnp.cumsum(turn_lengths, axis=1) - turn_lengths  # of all turns before it in the row
    others = jax.lax.cummax(jnp.where(is_first, before, 0), axis=1)  # of those of other trajectories
    return jnp.take_along_axis(prompt_lengths, prompt_index, axis=1) + before - others
