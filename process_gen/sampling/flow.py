"""Images out of noise: Euler integration of the model's velocity, with guidance.

G branches of guidance, B rows, N latent tokens, V values of a latent token.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from process_gen.models import flow

RENORMS = ("global", "channel", "text_channel", "none")
_TINY = 1e-8  # keeps the norm of a velocity of zeros out of the denominator


@dataclasses.dataclass(frozen=True)
class FlowSpec:
    """The settings of a sampler that the integration is compiled for.

    Attributes:
      flow_steps: Euler steps per image. The published model's N = 50 counts the
        points of linspace(1, 0, N), which is 49 Euler steps.
      time_shift: moves timesteps towards noise (`models.flow.shift_time`).
      text_scale: guidance by the newest text; 1 is off.
      image_scale: guidance by the images in context; 1 is off.
      interval: timesteps (low, high] at which guidance is on.
      renorm: what keeps guided velocities from growing: `global`, `channel`,
        `text_channel` or `none` (see `guide`).
      renorm_min: the least factor that renormalisation may apply.
    """

    flow_steps: int = 20
    time_shift: float = 1.0
    text_scale: float = 1.0
    image_scale: float = 1.0
    interval: tuple[float, float] = (0.4, 1.0)
    renorm: str = "global"
    renorm_min: float = 0.0

    @property
    def times(self) -> np.ndarray:
        """[flow_steps + 1] timesteps from 1 to 0."""
        return flow.shift_time(np.linspace(1.0, 0.0, self.flow_steps + 1), self.time_shift)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that guidance evaluates; a scale of 1 needs no branch."""
        scales = {"notext": self.text_scale, "noimg": self.image_scale}
        return ("full", *(name for name, scale in scales.items() if scale != 1.0))

    @property
    def runs(self) -> tuple[tuple[int, int, bool], ...]:
        """Consecutive Euler steps [start, stop) that are all guided, or all plain."""
        low, high = self.interval
        times = np.round(self.times[:-1], 6)  # so that an edge equals the timestep it falls on
        guided = (times > low) & (times <= high) & (len(self.branches) > 1)
        runs, start = [], 0
        for on, group in itertools.groupby(guided.tolist()):
            stop = start + len(list(group))
            runs.append((start, stop, on))
            start = stop
        return tuple(runs)


def guide(
    spec: FlowSpec,
    v: Float[jax.Array, "B N V"],
    v_notext: Float[jax.Array, "B N V"] | None,
    v_noimg: Float[jax.Array, "B N V"] | None,
) -> Float[jax.Array, "B N V"]:
    """Guided velocity of images [B, N, V], in float32 (BAGEL, arXiv 2505.14683).

        v_text = v_notext + a (v - v_notext)
        v_img  = v_noimg  + b (v_text - v_noimg)

    Renormalisation never lets a guided velocity be longer than the plain one:
    `global` by the norm of one whole image, `channel` by the norm of each
    token, `text_channel` by the norm of each token of v_text, before image
    guidance. The factor is clipped to [renorm_min, 1].

    Args:
      v: with the whole context.
      v_notext: without the newest text; None if the text scale is 1.
      v_noimg: with the texts only; None if the image scale is 1.
    """
    v = v.astype(jnp.float32)
    guided = v
    if v_notext is not None:
        v_notext = v_notext.astype(jnp.float32)
        guided = v_notext + spec.text_scale * (v - v_notext)
    if spec.renorm == "text_channel":
        guided = _shortened(guided, v, (-1,), spec.renorm_min)
    if v_noimg is not None:
        v_noimg = v_noimg.astype(jnp.float32)
        guided = v_noimg + spec.image_scale * (guided - v_noimg)
    if spec.renorm == "global":
        guided = _shortened(guided, v, (-2, -1), spec.renorm_min)
    elif spec.renorm == "channel":
        guided = _shortened(guided, v, (-1,), spec.renorm_min)
    return guided


def _shortened(guided: jax.Array, v: jax.Array, axes: tuple[int, ...], least: float) -> jax.Array:
    def norm(x):
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

    return guided * jnp.clip(norm(v) / (norm(guided) + _TINY), least, 1.0)


Velocity = Callable[[Sequence[str], jax.Array, jax.Array], dict[str, jax.Array]]
"""(branches, x_t [B, N, V], t [] or [B]) -> the velocity of each branch, evaluated as one batch."""


def integrate(
    spec: FlowSpec, velocity: Velocity, noise: Float[jax.Array, "B N V"]
) -> Float[jax.Array, "B N V"]:
    """Euler steps from noise [B, N, V] at t = 1 to images at t = 0.

    Each run of guided or of plain steps is a loop of its own, so plain steps do
    not evaluate the branches of guidance.
    """
    times = jnp.asarray(spec.times, jnp.float32)

    def euler(guided: bool):
        def body(i, x):
            t = times[i]
            if guided:
                by = velocity(spec.branches, x, t)
                v = guide(spec, by["full"], by.get("notext"), by.get("noimg"))
            else:
                v = velocity(("full",), x, t)["full"].astype(jnp.float32)
            return x - v * (t - times[i + 1])

        return body

    x = noise.astype(jnp.float32)
    for start, stop, guided in spec.runs:
        x = jax.lax.fori_loop(start, stop, euler(guided), x)
    return x
