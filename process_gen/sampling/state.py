"""The current turn of all rows on the devices, and what each branch of guidance sees of it.

Drafts and refine turns share a batch: both have the same slots, and `refines` says
which kind a row's turn is. All parts of the turn are in one KV cache, at the offsets
that they will have in the history.

B rows, M keys, T tokens of a text slot, D width.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from process_gen.models.cache import Context, KVCache, part_slices
from process_gen.trajectory.layout import Layout


@flax.struct.dataclass
class SamplingState:
    """The current turn of all rows.

    Attributes:
      context: what came before the turn.
      turn: KV cache of the turn so far, `layout.visible_tokens` keys; its mask says which exist.
      position: [B] int32, the next rotary position.
      refines: [B] bool, rows in a refine turn.
      rows: [B] bool, rows that take part in the next call.
      keys: [B] random keys of this turn.
      texts: the same turn in a context without images, for the branch of guidance
        that sees texts only, if there is one.
    """

    context: Context
    turn: KVCache
    position: Any
    refines: Any
    rows: Any
    keys: Any
    texts: SamplingState | None = None

    def with_fields(self, **fields: jax.Array) -> SamplingState:
        """The state with other `refines`, `rows` or `keys`, in `texts` too."""
        texts = None if self.texts is None else self.texts.with_fields(**fields)
        return self.replace(texts=texts, **fields)

    def extended(self, new: Extended) -> SamplingState:
        """The state after one more text or image; an image is not added to `texts`."""
        texts = self.texts if new.texts is None else self.texts.extended(new.texts)
        return self.replace(turn=new.turn, position=new.position, texts=texts)

    def seen(self, layout: Layout, stop: int) -> list[KVCache]:
        """What a part of the turn sees: history, prompt, and the keys of the turn before `stop`."""
        turn = self.turn.slice_keys(slice(stop))
        return [self.context.seen(layout, self.refines), self.context.prompt, turn]


@flax.struct.dataclass
class Extended:
    """A turn after one more text or image.

    Attributes:
      turn: the turn with it.
      position: [B] int32, the rotary position that follows.
      end: [B, D], hidden state of its closing token.
      tokens: [B, T] int32 of a text, padded, all padding in rows that took no part.
      texts: the same for `SamplingState.texts`, if there is one.
    """

    turn: KVCache
    position: Any
    end: Any
    tokens: Any = None
    texts: Extended | None = None


def without_newest_text(layout: Layout, state: SamplingState) -> SamplingState:
    """The state without the newest text; its `position` is that of the image then.

    The newest text is the one before the image in its turn, else the last text of
    the prompt, as in training's conditioning dropout. The image has the position
    with which that text began, unless something stands between the two.
    """
    prompt, turn, moved = state.context.prompt, state.turn, jnp.zeros_like(state.position)
    bare = jnp.ones_like(state.refines)
    if layout.visible_parts["before"]:
        before = turn.mask & _within(turn, part_slices(layout.visible_parts)["before"])
        turn, bare, moved = turn.keep_only(~before), ~before.any(1), _count(before)
    first = state.context.step[:, -1] < 0 if layout.window else jnp.ones_like(bare)
    places = part_slices(layout.prompt_parts)
    parts = {name: prompt.mask & _within(prompt, place) for name, place in places.items()}
    image = parts.pop("prompt_image", jnp.zeros_like(prompt.mask)).any(1)
    for name, there in reversed(parts.items()):
        newest = there & bare[:, None]
        bare = bare & ~there.any(1)
        prompt = prompt.keep_only(~newest)
        moved = moved + _count(newest) * (first & ~image if name == "prompt" else first)
    context = state.context.replace(prompt=prompt)
    return state.replace(context=context, turn=turn, position=state.position - moved)


def _within(cache: KVCache, place: slice) -> jax.Array:
    """[1, M] bool: the keys of one part."""
    at = jnp.arange(cache.mask.shape[1])
    return ((at >= place.start) & (at < place.stop))[None]


def _count(mask: jax.Array) -> jax.Array:
    return mask.sum(1, dtype=jnp.int32)


def branch(layout: Layout, state: SamplingState, name: str) -> tuple[list[KVCache], jax.Array]:
    """What a branch of guidance sees (`SamplingState.seen`), and the rotary position [B] of its image.

    `full` sees everything; `notext` everything but the newest text; `noimg` the
    context without images, `state.texts` (BAGEL, arXiv 2505.14683).
    """
    if name == "noimg":
        return branch(layout, state.texts, "full")
    if name == "notext":
        state = without_newest_text(layout, state)
    return state.seen(layout, part_slices(layout.visible_parts)["image"].start), state.position
