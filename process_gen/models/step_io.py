"""What goes into `begin` and `step`, and what comes out.

B rows, T tokens of a text slot, J noised copies, N latent tokens and P ViT
tokens of an image, V values of a latent token, U values of a ViT patch, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax

from process_gen.models.assembly import token_count


@flax.struct.dataclass
class PromptInputs:
    """A prompt: a text, and what else the layout has room for.

    Attributes:
      text: [B, T] int32, all pad where absent.
      image: [B, N, V] latents of the input image.
      view: [B, P, U], what the ViT sees of it.
      instruction: [B, T] int32, the text after the image.
      there: [B] bool for `prompt_image` and `prompt_image_vit`, where some rows lack them.
    """

    text: Any
    image: Any = None
    view: Any = None
    instruction: Any = None
    there: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)

    @property
    def texts(self) -> dict[str, jax.Array]:
        """Tokens by segment."""
        return {"prompt": self.text} | ({} if self.instruction is None else {"instruction": self.instruction})


@flax.struct.dataclass
class StepInputs:
    """What teacher forcing feeds one step.

    Attributes:
      present: [B] bool.
      plan, inspect, refine: [B, T] int32 tokens, all pad where absent.
      sketch, refined: [B, N, V] latents that later tokens see.
      sketch_noised, refined_noised: [B, J, N, V] flow inputs x_t.
      sketch_t, refined_t: [B, J] their timesteps.
      hide_text, hide_images: [B] bool, conditioning dropout: what the flow
        targets of this step may not see (the newest text; all clean images).
      sketch_view, refined_view: [B, P, U], what the ViT sees of the clean images;
        None where the layout has no ViT tokens.
      there: [B] bool by segment (`sketch`, `sketch_vit`, `refined`, `refined_vit`),
        for clean image segments that some of the steps lack.
    """

    present: Any
    plan: Any
    inspect: Any
    refine: Any
    sketch: Any
    refined: Any
    sketch_noised: Any
    refined_noised: Any
    sketch_t: Any
    refined_t: Any
    hide_text: Any
    hide_images: Any
    sketch_view: Any = None
    refined_view: Any = None
    there: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)

    @property
    def texts(self) -> dict[str, jax.Array]:
        """Tokens by segment."""
        return {"plan": self.plan, "inspect": self.inspect, "refine": self.refine}

    @property
    def refines(self) -> jax.Array:
        """[B] bool: steps that hold a corrected image."""
        return (token_count(self.refine) > 0) & self.present


@flax.struct.dataclass
class StepOutputs:
    """What the losses read of one step.

    Attributes:
      plan, inspect, refine: [B, T, D] hidden states of the text slots.
      sketch_end, refined_end: [B, D] hidden states of the vision tokens that
        close the visual states: of their ViT tokens where there are any.
      sketch_noised_end, refined_noised_end: [B, J, D] hidden states of the
        vision tokens that close the flow targets.
      sketch_velocity, refined_velocity: [B, J, N, V].
    """

    plan: Any
    inspect: Any
    refine: Any
    sketch_end: Any
    refined_end: Any
    sketch_noised_end: Any
    refined_noised_end: Any
    sketch_velocity: Any
    refined_velocity: Any
