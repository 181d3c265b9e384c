"""Packed rows with every image drawn anew: from what stands before it, in either order of the loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.sampling.packed import draw_rows
from tests.models.tiny import make_batch, make_model

KEY = jax.random.key(3)


@functools.partial(jax.jit, static_argnames=("model", "order"))
def draw(model, params, batch, order):
    return draw_rows(model, params, batch, KEY, 3, 2.0, order)


def drawn(batch, order="layers"):
    return draw(*make_model(), batch, order)


def test_an_image_is_drawn_from_what_the_row_shows_before_it():
    batch = make_batch(4, seed=2)
    shown = batch.replace(shown=batch.image, unjudged=jnp.zeros_like(batch.present))
    first, there = np.asarray(drawn(shown)), np.asarray(batch.present)
    assert first.shape == (4, 5, 4, 48) and np.isfinite(first).all()
    slot = 1
    others = shown.replace(shown=shown.shown.at[:, slot].set(255 - shown.shown[:, slot]))
    moved = np.abs(np.asarray(drawn(others)) - first).max((-1, -2)) > 1e-4
    same = np.asarray(batch.prompt_index == batch.prompt_index[:, slot, None]) & there
    assert not moved[:, : slot + 1].any() and not moved[there & ~same].any()
    assert moved[:, slot + 1][same[:, slot + 1] & there[:, slot]].any()
    targets = shown.replace(image=255 - shown.image)
    np.testing.assert_array_equal(drawn(targets), first)


def test_both_orders_of_the_loops_draw_the_same():
    batch = make_batch(4, seed=2)
    there = np.asarray(batch.present)
    layers, scan = (np.asarray(drawn(batch, order))[there] for order in ("layers", "scan"))
    np.testing.assert_allclose(layers, scan, rtol=1e-3, atol=1e-4)
