"""What goes into `begin` and `step`, and what comes out.

B rows, T tokens of a text slot, J noised copies, I latent tokens and P ViT
tokens of an image, C channels of a latent token, U values of a ViT patch, D width.
Training has the turns of a row beside each other: then every array is [B, S, ...].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class PromptInputs:
    """A prompt: a text, and what else the layout has room for.

    Attributes:
      text: [B, T] int32, all pad where absent.
      image: [B, I, C] latents of the input image.
      vit: [B, P, U], what the ViT sees of it.
      instruction: [B, T] int32, the text after the image.
      has_image: [B] bool; None where all prompts have one, if the layout has room for it.
      keep: [B] bool for `prompt_image` and `prompt_image_vit`, as in `TurnInputs`.
    """

    text: Any
    image: Any = None
    vit: Any = None
    instruction: Any = None
    has_image: Any = None
    keep: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class TurnInputs:
    """What teacher forcing feeds one turn.

    Attributes:
      present: [B] bool.
      refines: [B] bool, a refine turn.
      before, after: [B, T] int32 tokens, all pad where absent.
      image: [B, I, C] latents that later tokens see.
      noised: [B, J, I, C] flow inputs x_t.
      t: [B, J] their timesteps.
      vit: [B, P, U], what the ViT sees of the clean image; None where the layout has no ViT tokens.
      keep: [B] bool by segment (`image`, `image_vit`): False drops it from the sequence, for
        later tokens and for its own; positions go on as if it were there, as in BAGEL's data.
        Segments that are not named are kept.
      exists: [B] bool by segment (`image`, `image_vit`) that some turns never had; those take
        no position. Segments that are not named are there in every turn.
    """

    present: Any
    refines: Any
    before: Any
    after: Any
    image: Any
    noised: Any
    t: Any
    vit: Any = None
    keep: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)
    exists: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class TurnOutputs:
    """What the losses read of one turn.

    Attributes:
      before, after: [B, T, D] hidden states of the text slots.
      image_end: [B, D] hidden state of the vision token that closes the visual
        state: of its ViT tokens where they are there.
      noised_end: [B, J, D] hidden states of the vision tokens that close the flow targets.
      velocity: [B, J, I, C].
    """

    before: Any
    after: Any
    image_end: Any
    noised_end: Any
    velocity: Any
