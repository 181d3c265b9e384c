"""The content of a chunk, which of its tokens are present, and their rotary positions.

B rows (in training [B, S, ...], with S turn slots), L tokens of a chunk in packed order
(`visibility.Chunk`), T tokens of a text slot, J noised copies, I latent tokens and P ViT
tokens of an image, C channels of a latent token, U values of a ViT patch, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.layout import Segment
from process_gen.trajectory.visibility import Chunk

BySegment = Mapping[str, jax.Array | None]
"""Arrays by the name of a segment; None, or no entry, where the layout has no such segment."""


@flax.struct.dataclass
class ChunkInputs:
    """The content of a chunk's segments, by segment name.

    Attributes:
      present: [B] bool, rows that hold anything.
      texts: [B, T] int32 tokens, all padding where absent.
      latents: [B, I, C].
      times: [B], timesteps of the noised latents; clean ones need none.
      vit: [B, P, U], patches for the ViT.
      exists: [B] bool by image segment, the rows that have it; by default all `present` rows.
      keep: [B] bool by image segment, False where conditioning dropout removes its tokens; by default True.
        A dropped segment still takes its rotary position, as in BAGEL's data.
    """

    present: jax.Array
    texts: BySegment = flax.struct.field(default_factory=dict)
    latents: BySegment = flax.struct.field(default_factory=dict)
    times: BySegment = flax.struct.field(default_factory=dict)
    vit: BySegment = flax.struct.field(default_factory=dict)
    exists: BySegment = flax.struct.field(default_factory=dict)
    keep: BySegment = flax.struct.field(default_factory=dict)

    def takes_position(self, segment: Segment) -> jax.Array:
        """[B] bool: the rows in which an image segment takes a rotary position."""
        return self.exists.get(segment.name, True) & self.present

    def tokens_present(self, segment: Segment) -> jax.Array:
        """[B] bool: the rows in which other tokens can see an image segment: it exists and is not dropped."""
        return self.takes_position(segment) & self.keep.get(segment.name, True)


def prompt_inputs(
    text: jax.Array,
    latents: jax.Array | None = None,
    patches: jax.Array | None = None,
    instruction: jax.Array | None = None,
    has_image: jax.Array | None = None,
    keep: BySegment | None = None,
) -> ChunkInputs:
    """The content of a prompt: a text [B, T] and, if the layout has them, an image and a second text.

    The image is `latents` [B, I, C] and ViT `patches` [B, P, U], in the rows `has_image` [B]
    (default: all). The second text, `instruction` [B, T], follows it.
    """
    image_segments = ("prompt_image", "prompt_image_vit")
    return ChunkInputs(
        jnp.ones(text.shape[:-1], bool),
        texts={"prompt": text, "instruction": instruction},
        latents={"prompt_image": latents},
        vit={"prompt_image_vit": patches},
        exists={} if has_image is None else dict.fromkeys(image_segments, has_image),
        keep=keep or {},
    )


def turn_inputs(
    present: jax.Array,
    before: jax.Array,
    after: jax.Array,
    image: jax.Array,
    noised: jax.Array,
    t: jax.Array,
    patches: jax.Array | None = None,
    **masks: BySegment,
) -> ChunkInputs:
    """The content of a teacher-forced turn; `masks` are `exists` and `keep`.

    Texts are [B, T], the `image` that later tokens see is [B, I, C], and ViT
    `patches` [B, P, U]; the flow's inputs x_t are `noised` [B, J, I, C] at `t` [B, J].
    """
    copies = range(t.shape[-1])
    return ChunkInputs(
        present,
        texts={"before": before, "after": after},
        latents={"image": image} | {f"noised_{j}": noised[..., j, :, :] for j in copies},
        times={f"noised_{j}": t[..., j] for j in copies},
        vit={"image_vit": patches},
        **masks,
    )


def token_count(tokens: jax.Array) -> jax.Array:
    """Tokens of a text slot that are not padding, [...]."""
    return (tokens != PAD_ID).sum(-1, dtype=jnp.int32)


def token_mask(chunk: Chunk, content: ChunkInputs) -> jax.Array:
    """[B, L] bool in packed order: the tokens that are present, neither padding nor dropped."""
    masks, rows = [], len(content.present)
    for s in chunk.segments:
        if s.kind == "text":
            masks.append((content.texts[s.name] != PAD_ID) & content.present[:, None])
        else:
            masks.append(jnp.broadcast_to(content.tokens_present(s)[:, None], (rows, s.tokens)))
    return in_packed_order(chunk, masks)


def positions(chunk: Chunk, content: ChunkInputs, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotary positions [B, L] in packed order from `start` [B] on, and the position [B] that follows.

    Each token of a text has a position of its own. All latents of an image, and of its noised
    copies, share one position; its ViT tokens share the next one.
    """
    parts = []
    for s in chunk.segments:
        if s.kind == "text":
            parts.append(start[:, None] + jnp.arange(s.text)[None])
            start = start + token_count(content.texts[s.name])
        else:
            parts.append(jnp.broadcast_to(start[:, None], (start.shape[0], s.tokens)))
            if s.kind == "clean":
                start = start + content.takes_position(s).astype(jnp.int32)
    return in_packed_order(chunk, parts), start


def in_packed_order(chunk: Chunk, parts: Sequence[jax.Array]) -> jax.Array:
    """Arrays [B, tokens] of all segments, constant over each image, to [B, L] in packed order."""
    pairs = list(zip(chunk.segments, parts, strict=True))
    blocks = [x[:, : s.text] for s, x in pairs]
    blocks += [x[:, : s.vit] for s, x in pairs if s.vit]
    return jnp.concatenate(blocks + [x[:, : s.latents] for s, x in pairs if s.latents], axis=1)


def at_token(hidden: jax.Array, index: jax.Array) -> jax.Array:
    """hidden [B, tokens, D] at one token per row, [B, D]; index -1 [B] is the last token."""
    return jnp.take_along_axis(hidden, index[:, None, None] % hidden.shape[1], axis=1)[:, 0]
