"""Guidance arithmetic against plain NumPy, and which Euler steps are guided."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.sampling.flow import RENORMS, FlowSpec, guide, integrate

SPEC = FlowSpec(flow_steps=10, text_scale=4.0, image_scale=1.5)


def by_hand(spec, v, notext, noimg):
    """The published formulas, image by image and token by token."""
    out = np.empty_like(v)
    for b in range(len(v)):
        text = v[b] if notext is None else notext[b] + spec.text_scale * (v[b] - notext[b])
        if spec.renorm == "text_channel":
            for n in range(len(text)):
                factor = np.linalg.norm(v[b, n]) / np.linalg.norm(text[n])
                text[n] = text[n] * min(max(factor, spec.renorm_min), 1.0)
        image = text if noimg is None else noimg[b] + spec.image_scale * (text - noimg[b])
        if spec.renorm == "global":
            factor = np.sqrt((v[b] ** 2).sum()) / np.sqrt((image**2).sum())
            image = image * min(max(factor, spec.renorm_min), 1.0)
        if spec.renorm == "channel":
            factor = np.sqrt((v[b] ** 2).sum(1)) / np.sqrt((image**2).sum(1))
            image = image * np.clip(factor, spec.renorm_min, 1.0)[:, None]
        out[b] = image
    return out


@pytest.mark.parametrize("branches", ["both", "text", "image"])
@pytest.mark.parametrize("least", [0.0, 0.8])
@pytest.mark.parametrize("renorm", RENORMS)
def test_guidance_is_the_published_arithmetic(rng, renorm, least, branches):
    spec = dataclasses.replace(SPEC, renorm=renorm, renorm_min=least)
    v, notext, noimg = rng.standard_normal((3, 2, 4, 6))
    v[0] *= 3  # an image whose guided velocity grows less
    notext, noimg = (None if branches == "image" else notext), (None if branches == "text" else noimg)
    got = guide(spec, *(None if x is None else jnp.asarray(x, jnp.float32) for x in (v, notext, noimg)))
    np.testing.assert_allclose(got, by_hand(spec, v, notext, noimg), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("renorm", RENORMS)
def test_guidance_is_done_in_float32(rng, renorm):
    spec = dataclasses.replace(SPEC, renorm=renorm)
    parts = [jnp.asarray(x, jnp.bfloat16) for x in rng.standard_normal((3, 1, 4, 6))]
    got = guide(spec, *parts)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, guide(spec, *(x.astype(jnp.float32) for x in parts)))


def test_a_scale_of_one_needs_no_branch():
    assert SPEC.branches == ("full", "notext", "noimg")
    assert dataclasses.replace(SPEC, text_scale=1.0).branches == ("full", "noimg")
    plain = dataclasses.replace(SPEC, text_scale=1.0, image_scale=1.0)
    assert plain.branches == ("full",) and plain.runs == ((0, 10, False),)


def test_guidance_is_on_inside_the_interval_only():
    # t = 1.0 0.9 0.8 0.7 0.6 0.5 | 0.4 0.3 0.2 0.1: the interval is open below.
    assert SPEC.runs == ((0, 6, True), (6, 10, False))
    middle = dataclasses.replace(SPEC, interval=(0.25, 0.7))
    assert middle.runs == ((0, 3, False), (3, 8, True), (8, 10, False))
    assert dataclasses.replace(SPEC, flow_steps=50, time_shift=3.0).runs[0][1] == 41


def test_euler_steps_follow_the_velocity(rng):
    clean, noise = (jnp.asarray(x, jnp.float32) for x in rng.standard_normal((2, 2, 4, 6)))
    calls = []

    def straight(branches, x, t):
        calls.append(branches)
        return {name: (x - clean) / t for name in branches}

    x = integrate(dataclasses.replace(SPEC, renorm="none", time_shift=3.0), straight, noise)
    np.testing.assert_allclose(x, clean, atol=1e-5)
    assert calls == [SPEC.branches, ("full",)], "each loop is traced once"
