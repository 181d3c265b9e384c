"""`Outputs`: what the losses read of the model's forward pass.

B rows, S turn slots, R trajectories of a row, J noised copies, I latent tokens of an
image, C channels of a latent token, T tokens of a text slot, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.common.names import hint
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.controls import ControlIds

REFERENCE = "reference"
"""The frozen network that is the model itself, as it was when the run began."""


class LossError(ValueError):
    """A loss that cannot be computed; the message names it and the way out."""


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What losses read.

    Attributes:
      hidden: `before`, `after` [B, S, T, D]; `image_end` [B, S, D]; `noised_end`
        [B, S, J, D]; `prompt_end` [B, R, D].
      velocity, target: [B, S, J, I, C], predicted and true velocity.
      x_t: [B, S, J, I, C], the noised images.
      t: [B, S, J] timesteps.
      has_target: [B, S] bool, whether there is a flow target.
      previous: [B, S, I, C] latents of the visual state that a turn starts from: the image of the turn
        before, at the first the input image (zeros where there is none).
      clean: [B, S, I, C] latents of the image that the flow target shows.
      masked: bool by name of a hidden state, True where its label does not count: something that it
        depends on was dropped, or the model's own image is shown.
      logits: maps hidden states [..., D] to logits [..., vocabulary].
      nll: maps hidden states [B, ..., D] and labels [B, ...] to -log p [B, ...].
      ids: vocabulary ids of control tokens and markup.
      in_chunks: whether `nll` holds the logits of a part of the vocabulary at a time (`model.logit_chunk`).
      nlls: -log p by name of a hidden state, where `with_nll` has computed it.
      decode: maps latent tokens to pixels; see `pixels`.
      step: [] int32, batches seen before this one.
      networks: by name, the frozen networks; see `network`.
    """

    hidden: Mapping[str, jax.Array]
    velocity: jax.Array
    target: jax.Array
    x_t: jax.Array
    t: jax.Array
    has_target: jax.Array
    previous: jax.Array
    clean: jax.Array
    masked: Mapping[str, jax.Array]
    logits: Callable[[jax.Array], jax.Array]
    nll: Callable[[jax.Array, jax.Array], jax.Array]
    ids: ControlIds
    in_chunks: bool = False
    nlls: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    decode: Callable[..., jax.Array] | None = None
    step: jax.Array | int = 0
    networks: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def clean_estimate(self) -> jax.Array:
        """[B, S, J, I, C], the clean image that the predicted velocity points to: x_t - t v."""
        return self.x_t - self.t[..., None, None] * self.velocity

    def pixels(self, latents: jax.Array, window: tuple[int, int, int, int] | None = None) -> jax.Array:
        """Latent tokens [..., I, C] as pixels [..., H, W, 3] around [-1, 1], not clipped; gradients flow.

        With `patches` this is a reshape; else the decoder runs, and once more in the backward pass.
        That is expensive: select turns and copies first, or a window of the image.

        Args:
          latents: of images; `clean_estimate[:, :, 0]`, say.
          window: top row, left column, rows and columns of latent tokens; the whole image if None.

        Raises:
          ValueError: the window is not inside the latent grid.
        """
        return jax.checkpoint(lambda x: self.decode(x, window=window))(latents)

    def network(self, name: str) -> Any:
        """Returns a frozen network: for `reference` its `Outputs` on the same inputs, else a function.

        Raises:
          LossError: no loss of the table has declared that it reads it.
        """
        if name not in self.networks:
            raise LossError(
                f"no network {name!r} is here ({hint(name, self.networks)}): name it where the loss is "
                f'registered, losses.register("my_loss", networks=("{name}",))'
            )
        return self.networks[name]

    def cross_entropy(self, name: str, labels: Mapping[str, jax.Array]) -> jax.Array:
        """-log p of `labels[name]` at `hidden[name]`, [B, ...] float32; any number where that is padding."""
        if name in self.nlls:
            return self.nlls[name]
        return self.nll(self.hidden[name], labels[name])

    def over_words(self, function: Callable[..., jax.Array], name: str, *others: Outputs) -> jax.Array:
        """Applies `function` to logits [..., vocabulary] of a text slot, and of `others`; returns [B, S, T].

        With `model.logit_chunk`, only the logits of one turn slot are in memory at a time.
        """
        logits = [one.logits for one in (self, *others)]
        hidden = [one.hidden[name] for one in (self, *others)]

        def of(hidden: list[jax.Array]) -> jax.Array:
            return function(*(f(x) for f, x in zip(logits, hidden, strict=True)))

        if not self.in_chunks:
            return of(hidden)
        slots = [jnp.moveaxis(x, 1, 0) for x in hidden]
        return jnp.moveaxis(jax.lax.map(jax.checkpoint(of), slots), 0, 1)

    def with_nll(self, labels: Mapping[str, jax.Array]) -> Outputs:
        """Adds `nlls` of all labels, computed in one loop over the vocabulary; itself unless `in_chunks`.

        Several losses read the same tokens: XLA merges equal matrix products, but not equal loops.
        """
        if not self.in_chunks:
            return self
        names = [name for name in self.hidden if name in labels]
        rows, width = labels[names[0]].shape[0], self.hidden[names[0]].shape[-1]
        hidden = jnp.concatenate([self.hidden[name].reshape(rows, -1, width) for name in names], axis=1)
        flat = jnp.concatenate([labels[name].reshape(rows, -1) for name in names], axis=1)
        values, start, nlls = self.nll(hidden, flat), 0, {}
        for name in names:
            length = labels[name].size // rows
            nlls[name] = values[:, start : start + length].reshape(labels[name].shape)
            start += length
        return dataclasses.replace(self, nlls=nlls)

    def labels(self, labels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The labels of a batch, without those of what was dropped."""
        found = dict(labels)
        for name, masked in self.masked.items():
            if name in found:
                masked = masked.reshape(*masked.shape, *(1,) * (found[name].ndim - masked.ndim))
                found[name] = jnp.where(masked, PAD_ID, found[name])
        return found
