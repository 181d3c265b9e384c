"""Control tokens by id, and what each closing token predicts.

Inside a text every token predicts the one after it. A token that closes
something predicts what opens next, so that modality switches, corrections and
the end are all learned decisions:

    closes            opens next
    prompt            `<ins>` a plan | `<|vision_start|>` an image
    before            `<|vision_start|>` the image
    image             `<|im_start|>` an inspection | what follows the turn
    after             what follows the turn

    what follows a turn: `<refine>` a correction | `<ins>` the next plan |
    `<|vision_start|>` the next draft, without a plan | `<|endoftext|>` the end

The paper says that the switch of modality is learned and that a trajectory stops
after an image closes. Which token decides is our choice: a closing token predicts
the markup that opens what follows, so the decision does not depend on how much of
the turn later tokens can see.

B rows, S turn slots, R trajectories of a row, T tokens of a slot.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.trajectory import markup
from process_gen.trajectory.batch import PAD_ID, Batch


@dataclasses.dataclass(frozen=True)
class ControlIds:
    """Vocabulary ids of the tokens that open, close and switch, and of the two around a description."""

    end_of_text: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    ins: int
    refine: int
    des: int
    des_end: int

    @classmethod
    def of(cls, tokenizer: Any) -> ControlIds:
        """Reads the ids from a tokenizer (see `process_gen.data.tokenizers`)."""
        words = dict(ins=markup.INS, refine=markup.REFINE, des=markup.DES, des_end=markup.DES_END)
        names = ("end_of_text", "im_start", "im_end", "vision_start", "vision_end")
        given = {name: getattr(tokenizer, name) for name in names}
        for name, word in words.items():
            (given[name],) = tokenizer.encode(word)
        return cls(**given)


def _shifted(tokens: jax.Array) -> jax.Array:
    """The token after each one of a text slot."""
    return jnp.concatenate([tokens[..., 1:], jnp.full_like(tokens[..., :1], PAD_ID)], axis=-1)


def closing(tokens: jax.Array) -> jax.Array:
    """[..., T] bool: the last token of each text slot."""
    return (tokens != PAD_ID) & (_shifted(tokens) == PAD_ID)


def next_tokens(tokens: jax.Array, after: jax.Array | int) -> jax.Array:
    """Labels of a text slot [..., T]: the next token, and `after` [...] at the last one; pad elsewhere."""
    after = jnp.broadcast_to(jnp.asarray(after, tokens.dtype), tokens.shape[:-1])
    return jnp.where(closing(tokens), after[..., None], _shifted(tokens))


def follows(batch: Batch, ids: ControlIds) -> jax.Array:
    """[B, S] int32: the token that opens what follows each turn; `PAD_ID` where the row does not tell.

    That is in empty slots, and after the last turn of a trajectory that continues in another row.
    """

    def of_next(x):
        return jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)

    has_before = (batch.before_tokens != PAD_ID).any(-1)
    draft = jnp.where(of_next(has_before), ids.ins, ids.vision_start)
    following = jnp.where(of_next(batch.refines), ids.refine, draft)
    following = jnp.where(of_next(batch.present & ~batch.is_first), following, PAD_ID)
    return jnp.where(batch.present, jnp.where(batch.is_last, ids.end_of_text, following), PAD_ID)


def labels(batch: Batch, ids: ControlIds) -> dict[str, jax.Array]:
    """What every position predicts; `PAD_ID` where it predicts nothing.

    Returns:
      `before`, `after`: [B, S, T] for the text slots, whose last token is a closing
      one; `prompt_end` [B, R] and `image_end` [B, S] for the closing tokens of
      prompts and images.
    """
    has_before, has_after = ((x != PAD_ID).any(-1) for x in (batch.before_tokens, batch.after_tokens))
    following = follows(batch, ids)
    after_image = jnp.where(has_after, ids.im_start, following)
    slots = jnp.arange(batch.prompt_tokens.shape[1])[None, None]
    opens = (batch.is_first & batch.present)[:, :, None] & (batch.prompt_index[:, :, None] == slots)
    with_plan = (opens & has_before[:, :, None]).any(1)
    after_prompt = jnp.where(with_plan, ids.ins, ids.vision_start)
    return {
        "prompt_end": jnp.where(opens.any(1), after_prompt, PAD_ID),
        "before": next_tokens(batch.before_tokens, ids.vision_start),
        "image_end": jnp.where(batch.present, after_image, PAD_ID),
        "after": next_tokens(batch.after_tokens, following),
    }
