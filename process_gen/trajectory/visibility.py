"""Attention masks: which keys a query sees.

In logical order a key is visible to exactly one interval of queries:

    start[k] <= q < end[k]

    text     from itself                 to the end of what follows
    clean    from the start of its image to the end of what follows
    noised   from the start of its image to the end of its image

so a mask costs O(L) numbers. For a turn with a text of 2 tokens before, one noised
copy, an image and a text of 2 tokens after (images of one latent token
between two vision tokens; rows are queries, columns keys):

                 before  noised  image  after
    before  0      #.     ...    ...    ..
            1      ##     ...    ...    ..
    noised  2-4    ##     ###    ...    ..
    image   5-7    ##     ...    ###    ..
    after   8      ##     ...    ###    #.
            9      ##     ...    ###    ##

Latents and ViT tokens of one clean image are two segments of kind `clean`: the
ViT tokens come later, so they see the latents and the latents do not see them.

The prompt is visible to every query of its trajectory. What is visible of earlier
turns is set by the context policy of the layout, `layout.context` (`seen_parts`):

    full    everything
    step    of the current step everything; of the step before it the texts
            before its images, and its last image
    last    of the current step everything; of the step before it its last image

So with `step`, the next step sees of a corrected step its plan, its refine
instructions and its corrected image, which agree. An example with `step`: rows
are the querying turns, columns the turns they see; b, i, a are the text before,
the image, and the text after. The second draft is corrected once:

                 draft 1  draft 2  refine 2  draft 3
    draft 1
    draft 2      b i
    refine 2     b i      b i a
    draft 3               b        b i
    draft 4                                  b i
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from process_gen.trajectory.layout import Segment


def seen_parts(context: str, step: Any, refines: Any, own_step: Any, own_refines: Any) -> dict[str, Any]:
    """Which parts of earlier turns of its trajectory a turn sees, in training and in sampling.

    Args:
      context: the layout's policy.
      step: [..., W] numbers of the steps that the earlier turns belong to, oldest turn first.
      refines: [..., W] bool, whether they are refine turns.
      own_step: [...] number of the step of the querying turn.
      own_refines: [...] bool, whether it is a refine turn.

    Returns:
      `before`, `image` and `after`, [..., W] bool each.
    """
    everything = jnp.ones(step.shape, bool)
    if context == "full":
        return {"before": everything, "image": everything, "after": everything}
    is_corrected = jnp.concatenate([refines[..., 1:], own_refines[..., None]], axis=-1)  # by the next turn
    same_step, step_before = step == own_step[..., None], step == own_step[..., None] - 1
    return {
        "before": same_step | step_before if context == "step" else same_step,
        "image": same_step | (step_before & ~is_corrected),
        "after": same_step,
    }


@dataclasses.dataclass(frozen=True)
class Call:
    """A part of a chunk's attention that needs no mask, so that one call of a kernel computes it.

    Attributes:
      queries, keys: slices of the chunk's tokens, in packed order. The last keys are the queries' own tokens;
        all queries see the keys before those.
      causal: whether a query sees only those of the queries' own tokens that do not follow it; else all.
    """

    queries: tuple[slice, ...]
    keys: tuple[slice, ...]
    causal: bool


class Chunk:
    """Segments that go through the backbone together.

    In packed order all tokens with a vocabulary id and then all ViT tokens (the stream
    `und`) stand before all latent tokens (the stream `gen`), so that which weights a
    token uses is known when the program is traced. Rotary positions and the mask carry
    the logical order.

    Attributes:
      segments: in logical order.
      order: [L] logical position of each token in packed order.
      start, end: [L] in packed order, for each token as key: the logical positions of queries that see it.
      text, vit, latents: where the vocabulary, ViT and latent tokens of each segment stand in packed order.
      stream_tokens: number of tokens by stream, `und` and `gen`.
    """

    def __init__(self, segments: Sequence[Segment]):
        self.segments = tuple(segments)
        self.text_tokens = sum(s.text for s in self.segments)
        self.vit_tokens = sum(s.vit for s in self.segments)
        self.latent_tokens = sum(s.latents for s in self.segments)
        self.stream_tokens = {"und": self.und_tokens, "gen": self.latent_tokens}
        self.text: dict[str, slice] = {}
        self.vit: dict[str, slice] = {}
        self.latents: dict[str, slice] = {}
        text, vit, latents = 0, self.text_tokens, self.und_tokens
        order, start, end = np.zeros((3, self.tokens), np.int32)  # the last two in logical order
        offset = 0
        for s in self.segments:
            self.text[s.name] = slice(text, text + s.text)
            self.vit[s.name] = slice(vit, vit + s.vit)
            self.latents[s.name] = slice(latents, latents + s.latents)
            whole, positions = slice(offset, offset + s.tokens), np.arange(offset, offset + s.tokens)
            start[whole] = positions if s.kind == "text" else offset
            end[whole] = whole.stop if s.kind == "noised" else self.tokens
            # An image opens with a vision token and closes with the other one.
            order[self.text[s.name]] = positions if s.kind == "text" else positions[[0, -1]]
            inside = positions[:0] if s.kind == "text" else positions[1:-1]
            order[self.vit[s.name]] = inside[: s.vit]
            order[self.latents[s.name]] = inside[s.vit :]
            text, vit, latents = text + s.text, vit + s.vit, latents + s.latents
            offset += s.tokens
        self.order, self.start, self.end = order, start[order], end[order]

    @property
    def und_tokens(self) -> int:
        return self.text_tokens + self.vit_tokens

    @property
    def tokens(self) -> int:
        return self.und_tokens + self.latent_tokens

    def packed(self, *names: str) -> tuple[slice, ...]:
        """All tokens of some segments: vocabulary tokens, then ViT tokens, then latent tokens."""
        blocks = (block[name] for block in (self.text, self.vit, self.latents) for name in names)
        return tuple(s for s in blocks if s.stop > s.start)

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """[L, L] bool in packed order: may query (row) see key (column)?"""
        q = self.order[:, None]
        return (self.start[None] <= q) & (q < self.end[None])

    @functools.cached_property
    def calls(self) -> tuple[Call, ...]:
        """Calls that cover all queries: consecutive segments of one kind share a call where they can.

        Raises:
          ValueError: the tokens of a segment do not see the same keys, so a mask is needed.
        """
        calls = []
        for _, segments in itertools.groupby(self.segments, lambda segment: segment.kind):
            names = [segment.name for segment in segments]
            if shared := self._call(names):
                calls.append(shared)
                continue
            for name in names:
                if not (call := self._call([name])):
                    raise ValueError(f"the tokens of {name} do not all see the same: use a masked attention")
                calls.append(call)
        return tuple(calls)

    def _call(self, names: Sequence[str]) -> Call | None:
        """The call for the queries of some segments, None where it needs a mask."""
        queries = tuple(piece for name in names for piece in self.packed(name))
        mask = np.concatenate([self.mask[piece] for piece in queries])
        own = np.concatenate([mask[:, piece] for piece in queries], axis=1)
        causal = not own.all()
        if causal and not np.array_equal(own, np.tril(np.ones_like(own))):
            return None
        others = [p for s in self.segments if s.name not in names for p in self.packed(s.name)]
        seen = tuple(piece for piece in others if mask[:, piece].any())
        if not all(mask[:, piece].all() for piece in seen):
            return None
        return Call(queries, (*seen, *queries), causal)


chunk_of = functools.cache(Chunk)
"""The chunk of a tuple of segments, made once."""
