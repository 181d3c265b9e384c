"""The batch: packed rows of step slots, and the one spec that describes them.

Axes: B rows, S step slots of a row, R trajectories of a row, T tokens of a
text slot, H W image height and width.

A row of S step slots may hold several trajectories one after the other;
`reset` marks where a fresh context starts. A text slot that is all padding is
absent: no plan in a single-pass trajectory, no refine where none was needed.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from process_gen.trajectory.layout import Layout

PAD_ID = -1
"""Fills what a text leaves of its slot. No vocabulary has this id; in published ones 0 is a piece of text."""


def blank(field: str) -> int:
    """What an empty place holds in a field of the batch: padding in token slots, 0 in all others."""
    return PAD_ID if field.endswith("_tokens") else 0


PROMPT_FIELDS = ("prompt_tokens", "prompt_image", "has_prompt_image", "instruction_tokens", "prompt_latents")
"""The fields of a prompt, [B, R, ...]; all others are fields of steps, [B, S, ...]."""


@flax.struct.dataclass
class Batch:
    """Packed rows.

    Attributes:
      prompt_tokens: [B, R, T] int32, padded with `PAD_ID`.
      prompt_index: [B, S] int32, which of the R prompts the step draws.
      reset: [B, S] bool, first step of a trajectory.
      present: [B, S] bool, the slot holds a step.
      last: [B, S] bool, the trajectory ends with this step.
      plan_tokens, inspect_tokens, refine_tokens: [B, S, T] int32.
      sketch: [B, S, H, W, 3] uint8, the draft.
      refined: [B, S, H, W, 3] uint8, the corrected image, zeros where absent.
      sketch_ok: [B, S] bool, the draft carries out its instruction.
      plan_ok: [B, S] bool, the plan serves the prompt; the words of others are not supervised.
      prompt_image: [B, R, H, W, 3] uint8, the input images of prompts, where
        `layout.prompt_image` makes room for them; None elsewhere.
      has_prompt_image: [B, R] bool, likewise.
      instruction_tokens: [B, R, T] int32, the texts after those images, where
        `layout.instruction` makes room for them; None elsewhere.
      sketch_latents, refined_latents: [B, S, N, V] float, latent tokens of the
        images where they were encoded ahead of time; None elsewhere.
      prompt_latents: [B, R, N, V] float, likewise.
    """

    prompt_tokens: Any
    prompt_index: Any
    reset: Any
    present: Any
    last: Any
    plan_tokens: Any
    inspect_tokens: Any
    refine_tokens: Any
    sketch: Any
    refined: Any
    sketch_ok: Any
    plan_ok: Any
    prompt_image: Any = None
    has_prompt_image: Any = None
    instruction_tokens: Any = None
    sketch_latents: Any = None
    refined_latents: Any = None
    prompt_latents: Any = None

    @classmethod
    def spec(cls, layout: Layout, batch_size: int, latents: bool = False) -> Batch:
        """Shapes and dtypes of a batch, as `jax.ShapeDtypeStruct` leaves.

        `latents` says whether images were encoded ahead of time.
        """
        rows, steps = batch_size, layout.steps

        def array(*shape, dtype=jnp.int32):
            return jax.ShapeDtypeStruct(shape, dtype)

        more = {}
        if layout.prompt_image:
            more["prompt_image"] = array(rows, layout.trajectories, *layout.image_size, 3, dtype=jnp.uint8)
            more["has_prompt_image"] = array(rows, layout.trajectories, dtype=jnp.bool_)
        if layout.instruction:
            more["instruction_tokens"] = array(rows, layout.trajectories, layout.instruction)
        if latents:
            shape = (layout.latents, layout.latent_values)
            more["sketch_latents"] = array(rows, steps, *shape, dtype=jnp.float16)
            more["refined_latents"] = array(rows, steps, *shape, dtype=jnp.float16)
            if layout.prompt_image:
                more["prompt_latents"] = array(rows, layout.trajectories, *shape, dtype=jnp.float16)
        return cls(
            prompt_tokens=array(rows, layout.trajectories, layout.prompt),
            prompt_index=array(rows, steps),
            reset=array(rows, steps, dtype=jnp.bool_),
            present=array(rows, steps, dtype=jnp.bool_),
            last=array(rows, steps, dtype=jnp.bool_),
            plan_tokens=array(rows, steps, layout.plan),
            inspect_tokens=array(rows, steps, layout.inspect),
            refine_tokens=array(rows, steps, layout.refine),
            sketch=array(rows, steps, *layout.image_size, 3, dtype=jnp.uint8),
            refined=array(rows, steps, *layout.image_size, 3, dtype=jnp.uint8),
            sketch_ok=array(rows, steps, dtype=jnp.bool_),
            plan_ok=array(rows, steps, dtype=jnp.bool_),
            **more,
        )
