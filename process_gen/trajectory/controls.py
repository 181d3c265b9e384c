"""Control tokens by id, and what each closing token predicts.

Inside a text every token predicts the one after it. A token that closes
something predicts what opens next, so that modality switches, corrections and
the end are all learned decisions (the words of a plan that is marked as wrong
predict nothing):

    closes            opens next
    prompt            `<ins>` a plan | `<|vision_start|>` an image (single pass)
    plan              `<|vision_start|>` the sketch
    sketch            `<|im_start|>` an inspection | `<ins>` the next step | the end
    inspection        `<refine>` a correction | `<ins>` the next step | the end
    refine text       `<|vision_start|>` the corrected image
    refined image     `<ins>` the next step | the end

The end is `<|endoftext|>`. The paper says that the switch of modality is
learned and that a trajectory stops after an image closes; which token says so
is our choice: a closing token names the markup of the text that follows, so
the decision does not depend on how much of the step later tokens can see.

B rows, S step slots, R trajectories of a row, T tokens of a slot.
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
    """Vocabulary ids of the tokens that open, close and switch."""

    end_of_text: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    ins: int
    refine: int

    @classmethod
    def of(cls, tokenizer: Any) -> ControlIds:
        """Reads the ids from a tokenizer (see `process_gen.data.tokenizers`)."""
        (ins,), (refine,) = tokenizer.encode(markup.INS), tokenizer.encode(markup.REFINE)
        names = ("end_of_text", "im_start", "im_end", "vision_start", "vision_end")
        return cls(**{name: getattr(tokenizer, name) for name in names}, ins=ins, refine=refine)


def closing(tokens: jax.Array) -> jax.Array:
    """[..., T] bool: the last token of each text slot."""
    following = jnp.concatenate([tokens[..., 1:], jnp.full_like(tokens[..., :1], PAD_ID)], axis=-1)
    return (tokens != PAD_ID) & (following == PAD_ID)


def next_tokens(tokens: jax.Array, after: jax.Array | int) -> jax.Array:
    """Labels of a text slot [..., T]: the next token, and `after` [...] at the last one; pad elsewhere."""
    shifted = jnp.concatenate([tokens[..., 1:], jnp.full_like(tokens[..., :1], PAD_ID)], axis=-1)
    after = jnp.broadcast_to(jnp.asarray(after, tokens.dtype), tokens.shape[:-1])
    return jnp.where(closing(tokens), after[..., None], shifted)


def _plan_labels(batch: Batch, ids: ControlIds) -> jax.Array:
    """Labels of the plans [B, S, T]: a wrong plan teaches nothing but what follows it."""
    taught = batch.plan_ok[..., None] | closing(batch.plan_tokens)
    return jnp.where(taught, next_tokens(batch.plan_tokens, ids.vision_start), PAD_ID)


def labels(batch: Batch, ids: ControlIds) -> dict[str, jax.Array]:
    """What every supervised position predicts; `PAD_ID` where nothing is supervised.

    Returns:
      `plan`, `inspect`, `refine`: [B, S, T] for the text slots, whose last
      token is a closing one; `prompt_end`: [B, R]; `sketch_end`,
      `refined_end`: [B, S] for the closing tokens of prompts and images.
    """
    has_plan, has_inspect, has_refine = (
        (tokens != PAD_ID).any(-1)
        for tokens in (batch.plan_tokens, batch.inspect_tokens, batch.refine_tokens)
    )
    end = jnp.where(batch.last, ids.end_of_text, ids.ins)
    after_sketch = jnp.where(has_inspect, ids.im_start, jnp.where(has_refine, ids.refine, end))
    after_inspect = jnp.where(has_refine, ids.refine, end)
    opens = batch.reset & batch.present
    slots = jnp.arange(batch.prompt_tokens.shape[1])[None, None]
    opens = opens[:, :, None] & (batch.prompt_index[:, :, None] == slots)
    first_has_plan = (opens & has_plan[:, :, None]).any(1)
    after_prompt = jnp.where(first_has_plan, ids.ins, ids.vision_start)
    return {
        "prompt_end": jnp.where(opens.any(1), after_prompt, PAD_ID),
        "plan": _plan_labels(batch, ids),
        "sketch_end": jnp.where(batch.present, after_sketch, PAD_ID),
        "inspect": next_tokens(batch.inspect_tokens, after_inspect),
        "refine": next_tokens(batch.refine_tokens, ids.vision_start),
        "refined_end": jnp.where(batch.present & has_refine, end, PAD_ID),
    }
