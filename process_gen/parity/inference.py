"""A context, text and images after it, through the pieces of the sampler.

The context is a prompt with an input image and an instruction after it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import autoencoder, vit
from process_gen.models.config import ModelConfig
from process_gen.models.step_io import PromptInputs
from process_gen.models.unified import UnifiedModel
from process_gen.parity.golden import Golden, once
from process_gen.parity.row import layout_of
from process_gen.sampling import flow, stages
from process_gen.sampling.config import SamplerConfig
from process_gen.sampling.text import TextSpec, decode

NEVER = -2
"""A closing token that no vocabulary holds."""
GUIDANCES = {
    "flow_noguide": dict(text_scale=1.0, image_scale=1.0, renorm="none"),
    "flow_textglobal": dict(text_scale=4.0, image_scale=1.0, renorm="global"),
    "flow_bothglobal": dict(text_scale=4.0, image_scale=1.5, renorm="global"),
    "flow_bothchannel": dict(text_scale=4.0, image_scale=1.5, renorm="channel"),
    "flow_textchannel": dict(text_scale=4.0, image_scale=2.0, renorm="text_channel"),
}
"""The settings of the stored samples."""
DECODED = "flow_bothglobal"
"""The sample that `flow_image` decodes."""


def sampler_config(golden: Golden, **guidance: Any) -> SamplerConfig:
    """The sampler's settings for a stored sample; the published program counts points, not steps."""
    return SamplerConfig(
        flow_steps=golden.setting("flow", "num_timesteps") - 1,
        time_shift=golden.setting("flow", "timestep_shift"),
        interval=tuple(golden.setting("flow", "cfg_interval")),
        renorm_min=golden.setting("flow", "cfg_renorm_min"),
        contexts="own",
        **guidance,
    )


def inference_answers(golden: Golden, config: ModelConfig, params: Any, frozen: Any) -> dict[str, np.ndarray]:
    """What the published program stores of its context, text and samples, under its keys."""
    prompt, instruction = (_bracketed(golden, golden[f"inf_{name}"]) for name in ("prompt", "instruction"))
    layout = layout_of(
        golden,
        config,
        "inf_image",
        "inf_vit_image",
        prompt=prompt.shape[1],
        prompt_image=True,
        instruction=instruction.shape[1],
        steps=1,
        trajectories=1,
    )
    model = UnifiedModel(config, layout, golden.ids)
    works = [
        _work(golden, model, params, frozen, prompt, instruction, texts_only) for texts_only in (False, True)
    ]
    work = works[0].replace(texts=works[1])
    samples = {name: _sample(golden, model, params, work, guidance) for name, guidance in GUIDANCES.items()}
    pixels = autoencoder.to_pixels(config, layout, samples[DECODED][None], frozen)[0]
    return {
        "inf_context_len": np.asarray(work.context.prompt.visible.sum(1)),
        "inf_context_rope": np.asarray(work.next_id),
        "inf_greedy_tokens": _greedy(golden, model, params, work),
        **samples,
        "flow_image": np.moveaxis(np.asarray(pixels), -1, 0),
    }


def _bracketed(golden: Golden, ids: np.ndarray) -> np.ndarray:
    """A text slot [1, T] that fits."""
    return np.array([[golden.ids.im_start, *ids.tolist(), golden.ids.im_end]], np.int32)


def _work(golden: Golden, model: UnifiedModel, params, frozen, prompt, instruction, texts_only: bool):
    """A step that has not begun, after the golden context, or after its texts alone."""

    def image(name: str):
        return jnp.moveaxis(jnp.asarray(golden[name]), 0, -1)[None]

    view = None
    if model.layout.vit_tokens:
        view = vit.patches_of(model.config, model.layout, image("inf_vit_image"))
    there = {s.name: jnp.asarray([not texts_only]) for s in model.layout.prompt_parts["prompt_image"]}

    @once
    def begin(params, frozen):
        latents = autoencoder.to_tokens(model.config, image("inf_image"), frozen)
        inputs = PromptInputs(prompt, latents, view, instruction, there)
        return model.apply({"params": params}, inputs, method="begin")[0]

    context, row = begin(params, frozen), jnp.ones(1, bool)
    return stages.Work(context, {}, context.next_id, row, jax.random.split(jax.random.key(0), 1))


def _sample(golden: Golden, model: UnifiedModel, params, work: stages.Work, guidance) -> np.ndarray:
    """Latent tokens [N, V] out of the stored noise."""
    spec = sampler_config(golden, **guidance).flow

    @once
    def integrate(params, work, noise):
        velocity = stages.velocity_of(model, params, "sketch", work, {("full",), spec.branches}, spec.own)
        return flow.integrate(spec, velocity, noise)

    return np.asarray(integrate(params, work, golden["flow_noise"][None])[0])


def _greedy(golden: Golden, model: UnifiedModel, params, work: stages.Work) -> np.ndarray:
    """The tokens that the model writes greedily, as many as are stored, whatever closes a text elsewhere."""
    count, size = len(golden["inf_greedy_tokens"]), model.config.vocab_size
    model = model.clone(ids=dataclasses.replace(model.ids, im_end=NEVER))
    spec = TextSpec(count + 1, (model.ids.im_start,), (), size)

    @once
    def write(params, work):
        def pick(hidden, at):
            logits = model.apply({"params": params}, hidden, method="logits")
            return stages.choose(logits, spec.allowed(size), 0.0, work.keys)

        memory = stages.joined([work.context.prompt, work.context.history])
        return decode(model, params, memory, work.next_id, work.rows, spec, pick).tokens

    return np.asarray(write(params, work))[0, :count]
