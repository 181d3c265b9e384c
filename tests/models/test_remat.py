"""Remat policies: the same gradients, and less and less that waits for the backward pass."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models.config import ModelConfig
from process_gen.models.layers import Expert, stacked
from process_gen.models.remat import POLICIES
from tests.models.tiny import CONFIG

ROWS, TOKENS = 2, 8
CASES = ("none", *POLICIES)


class Stack(nn.Module):
    """Layers of one modality, whose tokens all see each other."""

    config: ModelConfig

    def setup(self):
        self.layers = Expert(self.config)

    def __call__(self, x):
        c = self.config
        angles = jnp.linspace(0.0, 1.0, c.head_dim // 2)[None, None]
        rope = tuple(jnp.broadcast_to(f(angles), (*x.shape[:2], c.head_dim // 2)) for f in (jnp.cos, jnp.sin))

        def body(layer, carry, _):
            attended = jax.nn.dot_product_attention(*layer.qkv(carry["und"], rope))
            return {"und": layer.residual(carry["und"], attended.reshape(*x.shape[:2], -1))}, None

        return stacked(body, c, 3)(self.layers, {"und": x}, None)[0]["und"]


@functools.cache
def differentiated(policy: str):
    """Gradients, and the bytes that wait on the device and in host memory between the two passes."""
    model = Stack(dataclasses.replace(CONFIG, remat=policy))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((ROWS, TOKENS, CONFIG.width)), jnp.float32)
    params = nn.unbox(jax.jit(Stack(CONFIG).init)(jax.random.key(0), x))

    def loss(params):
        return jnp.square(model.apply(params, x)).sum()

    pull = jax.jit(lambda params: jax.vjp(loss, params)[1])(params)
    kinds = [(leaf.nbytes, leaf.sharding.memory_kind) for leaf in jax.tree.leaves(pull)]
    waits = [sum(n for n, kind in kinds if (kind == "pinned_host") == host) for host in (False, True)]
    return jax.jit(jax.grad(loss))(params), waits


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_those_of_a_pass_that_keeps_everything(policy):
    wanted, found = differentiated("none")[0], differentiated(policy)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


def test_each_policy_keeps_less_than_the_one_before():
    kept = [differentiated(policy)[1] for policy in CASES]
    on_device = [device for device, _ in kept]
    assert on_device == sorted(on_device, reverse=True) and len(set(on_device)) == len(CASES)
    on_host = dict(zip(CASES, (host for _, host in kept), strict=True))
    assert on_host.pop("offload") == 3 * ROWS * TOKENS * CONFIG.width * 4
    assert not any(on_host.values())
