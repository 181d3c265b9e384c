"""Answers of inference: text and images after a context, computed with the functions of the sampler.

The context is a prompt with an input image and an instruction after it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import autoencoder, vit
from process_gen.models.cache import Context, KVCache, joined, part_slices
from process_gen.models.config import ModelConfig
from process_gen.models.content import prompt_inputs, token_count
from process_gen.models.unified import UnifiedModel
from process_gen.parity.golden import Golden, jit_once
from process_gen.parity.row import layout_of
from process_gen.sampling import extend, flow

GUIDANCES = {
    "flow_noguide": dict(text_scale=1.0, image_scale=1.0, renorm="none"),
    "flow_textglobal": dict(text_scale=4.0, image_scale=1.0, renorm="global"),
    "flow_bothglobal": dict(text_scale=4.0, image_scale=1.5, renorm="global"),
    "flow_bothchannel": dict(text_scale=4.0, image_scale=1.5, renorm="channel"),
    "flow_textchannel": dict(text_scale=4.0, image_scale=2.0, renorm="text_channel"),
}
"""Guidance settings of the stored samples, by key."""
DECODED = "flow_bothglobal"
"""The sample that `flow_image` decodes."""


def inference_answers(golden: Golden, config: ModelConfig, params: Any, frozen: Any) -> dict[str, np.ndarray]:
    """The answers for the context, the text and the samples, under the published keys."""
    prompt, instruction = (_bracketed(golden, golden[f"inf_{name}"]) for name in ("prompt", "instruction"))
    layout = layout_of(
        golden,
        config,
        "inf_image",
        "inf_vit_image",
        prompt=prompt.shape[1],
        prompt_image=True,
        instruction=instruction.shape[1],
        before=0,
        after=0,
        turns=1,
        trajectories=1,
    )
    model = UnifiedModel(config, layout, golden.ids)
    contexts = _contexts(golden, model, params, frozen, prompt, instruction)
    samples = {name: _sample(golden, model, params, contexts, g) for name, g in GUIDANCES.items()}
    pixels = autoencoder.to_pixels(config, layout, samples[DECODED][None], frozen)[0]
    return {
        "inf_context_len": np.asarray(contexts["full"].prompt.mask.sum(1)),
        "inf_context_rope": np.asarray(contexts["full"].position),
        "inf_greedy_tokens": _greedy(golden, model, params, contexts["full"]),
        **samples,
        "flow_image": np.moveaxis(np.asarray(pixels), -1, 0),
    }


def _bracketed(golden: Golden, ids: np.ndarray) -> np.ndarray:
    """A text slot [1, T] without padding: `ids` between the opening and the closing token."""
    return np.array([[golden.ids.im_start, *ids.tolist(), golden.ids.im_end]], np.int32)


def _contexts(
    golden: Golden, model: UnifiedModel, params: Any, frozen: Any, prompt: np.ndarray, instruction: np.ndarray
) -> dict[str, Context]:
    """The contexts of the branches of guidance: everything, all but the newest text, and texts alone."""

    def image(name: str):
        return jnp.moveaxis(jnp.asarray(golden[name]), 0, -1)[None]

    patches = None
    if model.layout.vit_tokens:
        patches = vit.patches_of(model.config, model.layout, image("inf_vit_image"))

    @jit_once
    def prefill(params, frozen, has_image):
        latents = autoencoder.to_tokens(model.config, image("inf_image"), frozen)
        content = prompt_inputs(prompt, latents, patches, instruction, has_image)
        return model.apply({"params": params}, content, method="prefill")[0]

    full = prefill(params, frozen, jnp.ones(1, bool))
    newest = part_slices(model.layout.prompt_parts)["instruction"]
    older = jnp.ones_like(full.prompt.mask).at[:, newest].set(False)
    notext = full.replace(
        prompt=full.prompt.keep_only(older), position=full.position - token_count(instruction)
    )
    return {"full": full, "notext": notext, "noimg": prefill(params, frozen, jnp.zeros(1, bool))}


def _sample(golden: Golden, model: UnifiedModel, params, contexts, guidance) -> np.ndarray:
    """Latent tokens [N, V] of a sample, integrated from the stored noise."""
    spec = flow.FlowSpec(
        flow_steps=golden.setting("flow", "num_timesteps") - 1,  # the published program counts points in time
        time_shift=golden.setting("flow", "timestep_shift"),
        interval=tuple(golden.setting("flow", "cfg_interval")),
        renorm_min=golden.setting("flow", "cfg_renorm_min"),
        **guidance,
    )
    nothing = KVCache.empty(model.config, 1, 0)

    @jit_once
    def integrate(params, contexts, noise):
        def velocity(branches, x_t, t):
            def after(context: Context):
                given = ([nothing, context.prompt], x_t, jnp.full(1, t), context.position)
                return model.apply({"params": params}, *given, method=extend.velocity)

            stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(contexts[name] for name in branches))
            return dict(zip(branches, jax.lax.map(after, stacked), strict=True))

        return flow.integrate(spec, velocity, noise)

    return np.asarray(integrate(params, contexts, golden["flow_noise"][None])[0])


def _greedy(golden: Golden, model: UnifiedModel, params, context: Context) -> np.ndarray:
    """Greedily decoded tokens, as many as are stored; closing tokens do not end the text."""
    count, keys = len(golden["inf_greedy_tokens"]), context.prompt.mask.shape[1]
    nothing = KVCache.empty(model.config, 1, 0)

    @jit_once
    def write(params, context):
        def one(state, i):
            cache, token = state
            given = ([nothing, cache], token[:, None], context.position + i)
            hidden, new = model.apply({"params": params}, *given, method=extend.text)
            logits = model.apply({"params": params}, hidden[:, 0], method="logits")
            return (cache.write(new, keys + i), jnp.argmax(logits, -1).astype(jnp.int32)), token

        cache = joined([context.prompt, KVCache.empty(model.config, 1, count)])
        first = jnp.full(1, model.ids.im_start, jnp.int32)
        return jax.lax.scan(one, (cache, first), jnp.arange(count))[1]

    return np.asarray(write(params, context))[:, 0]
