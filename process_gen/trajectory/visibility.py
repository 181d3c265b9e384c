"""Who sees whom.

In logical order a key is visible to exactly one interval of queries:

    start[k] <= q < end[k]

    text     from itself                 to the end of what follows
    clean    from the start of its image to the end of what follows
    noised   from the start of its image to the end of its image

so a mask costs O(L) numbers. For a step with a plan of 2 tokens, one noised
copy, a sketch and an inspection of 2 tokens (images of one latent token
between two vision tokens; rows are queries, columns keys):

                 plan  noised  sketch  inspect
    plan    0    #.    ...     ...     ..
            1    ##    ...     ...     ..
    noised  2-4  ##    ###     ...     ..
    sketch  5-7  ##    ...     ###     ..
    inspect 8    ##    ...     ###     #.
            9    ##    ...     ###     ##

Latents and ViT tokens of one clean image are two segments of kind `clean`: the
ViT tokens come later, so they see the latents and the latents do not see them.

Earlier context (the prompt, earlier steps) is visible to every row. What
"what follows" means between steps is the context policy of the layout: with
`full` it is the rest of the trajectory; with `last` a text ends with its own
step and a visual state with the step after it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from process_gen.trajectory.layout import Segment


def intervals(
    segments: Sequence[Segment], seen_until: Mapping[str, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of queries to which each key is visible.

    Args:
      segments: in logical order.
      seen_until: logical position at which a segment (by name) stops being
        visible; by default the end of all segments.

    Returns:
      start, end: [L] int32 in logical order.
    """
    total = sum(s.tokens for s in segments)
    start, end, offset = [], [], 0
    for segment in segments:
        positions = np.arange(offset, offset + segment.tokens)
        stop = (seen_until or {}).get(segment.name, total)
        start.append(positions if segment.kind == "text" else np.full_like(positions, offset))
        end.append(np.full_like(positions, offset + segment.tokens if segment.kind == "noised" else stop))
        offset += segment.tokens
    return np.concatenate(start).astype(np.int32), np.concatenate(end).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class QueryGroup:
    """Queries that share one attention call, and the keys that they may see.

    Attributes:
      names: the segments whose tokens ask.
      noised: whether they are flow targets.
      queries, keys: slices into the tokens of the chunk, in memory order.
      mask: [queries, keys] bool, who sees whom inside the chunk.
    """

    names: tuple[str, ...]
    noised: bool
    queries: tuple[slice, ...]
    keys: tuple[slice, ...]
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Call:
    """Queries that all see the same keys, but for a causal order among themselves: no mask is needed.

    Attributes:
      group: the group that the queries belong to.
      queries, keys: slices into the tokens of the chunk, in memory order; the queries' own keys come last.
      causal: whether a query sees of its own only the keys up to itself; else all of them.
    """

    group: QueryGroup
    queries: tuple[slice, ...]
    keys: tuple[slice, ...]
    causal: bool


class Chunk:
    """Segments that go through the backbone together.

    In memory all tokens with a vocabulary id and then all ViT tokens (the
    understanding block) stand before all latent tokens (the generation block),
    so that which weights a token uses is known when the program is traced.
    Rotary ids and the mask carry the logical order.

    Attributes:
      segments: in logical order.
      order: [L] logical position of each token in memory.
      start, end: [L] who may see each token in memory, as key.
    """

    def __init__(self, segments: Sequence[Segment], seen_until: Mapping[str, int] | None = None):
        self.segments = tuple(segments)
        self.text_tokens = sum(s.text for s in self.segments)
        self.vit_tokens = sum(s.vit for s in self.segments)
        self.latent_tokens = sum(s.latents for s in self.segments)
        self._text: dict[str, slice] = {}
        self._vit: dict[str, slice] = {}
        self._latents: dict[str, slice] = {}
        text, vit, latents = 0, self.text_tokens, self.und_tokens
        offset, order = 0, np.zeros(self.tokens, np.int32)
        for s in self.segments:
            self._text[s.name] = slice(text, text + s.text)
            self._vit[s.name] = slice(vit, vit + s.vit)
            self._latents[s.name] = slice(latents, latents + s.latents)
            positions = np.arange(offset, offset + s.tokens)
            # An image opens with a vision token and closes with the other one.
            order[self._text[s.name]] = positions if s.kind == "text" else positions[[0, -1]]
            inside = positions[:0] if s.kind == "text" else positions[1:-1]
            order[self._vit[s.name]] = inside[: s.vit]
            order[self._latents[s.name]] = inside[s.vit :]
            text, vit, latents = text + s.text, vit + s.vit, latents + s.latents
            offset += s.tokens
        start, end = intervals(self.segments, seen_until)
        self.order, self.start, self.end = order, start[order], end[order]

    @property
    def und_tokens(self) -> int:
        """Tokens of the understanding block."""
        return self.text_tokens + self.vit_tokens

    @property
    def tokens(self) -> int:
        return self.und_tokens + self.latent_tokens

    def text(self, name: str) -> slice:
        """Where the vocabulary tokens of a segment stand in memory."""
        return self._text[name]

    def vit(self, name: str) -> slice:
        """Where the ViT tokens of a segment stand in memory."""
        return self._vit[name]

    def latents(self, name: str) -> slice:
        """Where the latent tokens of a segment stand in memory."""
        return self._latents[name]

    def memory(self, *names: str) -> tuple[slice, ...]:
        """All tokens of some segments: vocabulary tokens, then ViT tokens, then latent tokens."""
        blocks = (block[name] for block in (self._text, self._vit, self._latents) for name in names)
        return tuple(s for s in blocks if s.stop > s.start)

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """[L, L] bool in memory order: may query (row) see key (column)?"""
        q = self.order[:, None]
        return (self.start[None] <= q) & (q < self.end[None])

    @functools.cached_property
    def groups(self) -> tuple[QueryGroup, ...]:
        """One group for every run of segments of one kind, each with the keys it needs."""
        runs: list[list[Segment]] = []
        for segment in self.segments:
            if runs and runs[-1][-1].kind == segment.kind:
                runs[-1].append(segment)
            else:
                runs.append([segment])
        return tuple(self._group(run) for run in runs)

    def _group(self, run: Sequence[Segment]) -> QueryGroup:
        queries = tuple(piece for s in run for piece in self.memory(s.name))
        rows = np.concatenate([self.mask[piece] for piece in queries])
        seen = [s.name for s in self.segments if any(rows[:, p].any() for p in self.memory(s.name))]
        keys = tuple(piece for name in seen for piece in self.memory(name))
        mask = np.concatenate([rows[:, piece] for piece in keys], axis=1)
        return QueryGroup(tuple(s.name for s in run), run[0].kind == "noised", queries, keys, mask)

    @functools.cached_property
    def calls(self) -> tuple[Call, ...]:
        """The groups cut until each part is plain: one call for every image, and one for texts in a row.

        Raises:
          ValueError: a segment sees only a part of another one.
        """
        return tuple(
            call
            for group in self.groups
            for run in ([group.names] if self._is_plain(group.names) else [[name] for name in group.names])
            for call in [self._call(group, run)]
        )

    def _is_plain(self, run: Sequence[str]) -> bool:
        queries, others = self._pieces(run)
        rows = np.concatenate([self.mask[piece] for piece in queries])
        own = np.concatenate([rows[:, piece] for piece in queries], axis=1)
        triangle = np.array_equal(own, np.tril(np.ones_like(own)))
        return (own.all() or triangle) and all(rows[:, piece].all() for piece in others)

    def _pieces(self, run: Sequence[str]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The tokens of some segments, and those of the other segments that they see anything of."""
        queries = tuple(piece for name in run for piece in self.memory(name))
        rows = np.concatenate([self.mask[piece] for piece in queries])
        names = [s.name for s in self.segments if s.name not in run]
        return queries, tuple(p for name in names for p in self.memory(name) if rows[:, p].any())

    def _call(self, group: QueryGroup, run: Sequence[str]) -> Call:
        if not self._is_plain(run):
            raise ValueError(
                f"the tokens of {' and '.join(run)} do not all see the same: use a masked attention"
            )
        queries, others = self._pieces(run)
        causal = not all(self.mask[a, b].all() for a in queries for b in queries)
        return Call(group, queries, (*others, *queries), causal)
