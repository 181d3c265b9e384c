"""The batch: packed rows of turn slots, and the one spec that describes them.

Axes: B rows, S turn slots of a row, R trajectories of a row, T tokens of a text
slot, H W image height and width, N latent tokens of an image, V values of one.

A row of S turn slots may hold several trajectories one after the other;
`is_first` marks where one begins. A text is absent if its slot is all padding.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from process_gen.trajectory.layout import FIELD_KINDS, Layout
from process_gen.trajectory.stages import turn_fields

PAD_ID = -1
"""Padding of text slots. Published vocabularies use id 0 for text, so padding is -1."""

EXTRA = "extra/"
"""Prefix of user-defined fields while rows are packed."""

PROMPT_FIELDS = ("prompt_tokens", "prompt_image", "has_prompt_image", "instruction_tokens", "prompt_latents")
"""The fields of a prompt, [B, R, ...]; all others are fields of turns, [B, S, ...]."""

LATENTS = np.dtype("float16")
"""The type of latents that were encoded ahead of time."""


def fill_value(field: str) -> int:
    """The fill value of a field of the batch: padding in token slots, 0 in all others."""
    return PAD_ID if field.endswith("_tokens") else 0


@flax.struct.dataclass
class Batch:
    """Packed rows.

    Attributes:
      prompt_tokens: [B, R, T] int32, padded with `PAD_ID`.
      prompt_index: [B, S] int32, which of the R prompts the turn draws.
      present: [B, S] bool, the slot holds a turn.
      is_first, is_last: [B, S] bool, the trajectory begins or ends with this turn. A part that another
        part continues (`Trajectory.ends`) has no last turn.
      refines: [B, S] bool, a refine turn; else a draft.
      has_image: [B, S] bool, False for a correction that was not drawn.
      source: [B, S] int32, which source of a mixture the turn comes from.
      supervised: [B, S] int32, the stages that have losses, as `stages.stage_bits`.
      before_tokens, after_tokens: [B, S, T] int32.
      image: [B, S, H, W, 3] uint8.
      target: [B, S] int32, how many turns ahead the image stands that is the flow
        target: 0 for the turn's own image; -1 where there is no target.
      before_weight, image_weight, after_weight: [B, S] float32, of the losses.
      prompt_image: [B, R, H, W, 3] uint8, the input images of prompts; None without
        `layout.prompt_image`.
      has_prompt_image: [B, R] bool, likewise.
      instruction_tokens: [B, R, T] int32, the texts after those images; None without
        `layout.instruction`.
      image_latents: [B, S, N, V] float16, latent tokens of `image`; None if they were
        not encoded ahead of time.
      prompt_latents: [B, R, N, V] float16, those of `prompt_image`, likewise.
      shown: [B, S, H, W, 3] uint8, images that later tokens see in the place of `image`, which stays the
        flow target; None if they see `image`.
      shown_latents: [B, S, N, V] float16, their latents, where the batch has `image_latents`.
      unjudged: [B, S] bool, turns whose inspection, and whose decisions after the image, have no loss,
        since they may be wrong for the image in `shown`; None without `shown`.
      extra: by name, the user-defined `layout.fields`, [B, S] or [B, S, H, W] or [B, S, H, W, 3];
        zeros where a turn has none. None where the layout has none.
    """

    prompt_tokens: Any
    prompt_index: Any
    present: Any
    is_first: Any
    is_last: Any
    refines: Any
    has_image: Any
    source: Any
    supervised: Any
    before_tokens: Any
    after_tokens: Any
    image: Any
    target: Any
    before_weight: Any
    image_weight: Any
    after_weight: Any
    prompt_image: Any = None
    has_prompt_image: Any = None
    instruction_tokens: Any = None
    image_latents: Any = None
    prompt_latents: Any = None
    shown: Any = None
    shown_latents: Any = None
    unjudged: Any = None
    extra: Any = None

    def field(self, name: str) -> Any:
        """A user-defined field, of `extra`; LookupError where the layout has none of that name."""
        if name not in (self.extra or {}):
            known = ", ".join(self.extra or ()) or "none"
            raise LookupError(
                f"the record has no field {name!r}, config.data.fields names {known}: add "
                f'config.data.fields.{name} = "mask", or another kind ({", ".join(FIELD_KINDS)})'
            )
        return self.extra[name]

    @classmethod
    def spec(cls, layout: Layout, batch_size: int, latents: bool = False, shown: bool = False) -> Batch:
        """Shapes and dtypes of a batch, as `jax.ShapeDtypeStruct` leaves.

        `latents`: images were encoded ahead of time. `shown`: the batch has the field `shown`.
        """

        def turns(*shape, dtype=jnp.int32):
            return jax.ShapeDtypeStruct((batch_size, layout.turns, *shape), dtype)

        def prompts(*shape, dtype=jnp.int32):
            return jax.ShapeDtypeStruct((batch_size, layout.trajectories, *shape), dtype)

        pixels, latent_shape = (*layout.image_size, 3), (layout.latents, layout.latent_values)
        fields = {name: turns() for name in ("prompt_index", "source", "supervised", "target")}
        fields["prompt_tokens"] = prompts(layout.prompt)
        flags = ("present", "is_first", "is_last", "refines", "has_image")
        fields |= {name: turns(dtype=jnp.bool_) for name in flags}
        fields |= {f"{f.name}_tokens": turns(getattr(layout, f.name)) for f in turn_fields("text")}
        fields |= {f.name: turns(*pixels, dtype=jnp.uint8) for f in turn_fields("image")}
        fields |= {f.name: turns(dtype=jnp.float32) for f in turn_fields("weight")}
        if layout.prompt_image:
            fields["prompt_image"] = prompts(*pixels, dtype=jnp.uint8)
            fields["has_prompt_image"] = prompts(dtype=jnp.bool_)
        if layout.instruction:
            fields["instruction_tokens"] = prompts(layout.instruction)
        if layout.fields:
            fields["extra"] = {
                name: turns(*layout.field_shape(kind), dtype=jnp.dtype(FIELD_KINDS[kind]))
                for name, kind in layout.fields
            }
        if latents:
            fields |= {f"{f.name}_latents": turns(*latent_shape, dtype=LATENTS) for f in turn_fields("image")}
            if layout.prompt_image:
                fields["prompt_latents"] = prompts(*latent_shape, dtype=LATENTS)
        if shown:
            fields |= {"shown": fields["image"], "unjudged": fields["present"]}
            fields["shown_latents"] = fields.get("image_latents")
        return cls(**fields)
