"""Settings are checked where they are built."""

from __future__ import annotations

import dataclasses

import pytest
from sampling_models import LAYOUT, make_model, random_params

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.sampling import PromptError, Sampler, SamplerConfig, SamplerError
from process_gen.trajectory.stages import Mode


@pytest.mark.parametrize(
    "key, value",
    [
        ("flow_steps", 0),
        ("flow_steps", 2.5),
        ("flow_steps", True),
        ("time_shift", 0.0),
        ("text_scale", -1.0),
        ("text_scale", float("nan")),
        ("image_scale", "2"),
        ("interval", (0.5,)),
        ("interval", (0.6, 0.4)),
        ("interval", 0.4),
        ("renorm", "locally"),
        ("renorm_min", 1.5),
        ("temperature", float("inf")),
        ("max_steps", 0),
        ("mode", "sketchy"),
        ("seed", -1),
    ],
)
def test_a_bad_setting_is_named(key, value):
    with pytest.raises(SamplerError, match=rf"sampling\.{key} must be .* got "):
        SamplerConfig(**{key: value})


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(SamplerError, match="sampling.text_scal; did you mean text_scale"):
        SamplerConfig.of({"flow_steps": 3}, text_scal=2.0)


def test_settings_come_from_plain_values():
    config = SamplerConfig.of({"flow_steps": 3, "interval": [0.2, 1.0], "mode": "plan_only"}, seed=5)
    assert config == SamplerConfig(flow_steps=3, interval=(0.2, 1.0), mode=Mode.PLAN_ONLY, seed=5)


def make_sampler(model=None, **settings) -> Sampler:
    return Sampler(
        model or make_model(), random_params(), scenes_tokenizer(), SamplerConfig(**settings), rows=2
    )


def test_a_full_context_has_room_for_so_many_steps():
    full = make_model(dataclasses.replace(LAYOUT, context="full"))
    with pytest.raises(SamplerError, match="sampling.max_steps is 6, .* layout.steps = 4"):
        make_sampler(full)
    make_sampler(full, mode="single_pass")
    make_sampler(full, max_steps=4)


def test_prompts_are_checked_before_any_work():
    sampler = make_sampler()
    with pytest.raises(PromptError, match="the prompt is empty"):
        sampler.sample(["a red circle", " \n"])
    with pytest.raises(PromptError, match="12 tokens, 8 fit .layout.prompt = 10"):
        sampler.sample(["a red circle left of a blue square and a green star"])
    with pytest.raises(PromptError, match="2 prompts and 3 seeds"):
        sampler.sample(["a red circle"] * 2, seed=[1, 2, 3])
    with pytest.raises(PromptError, match="seed"):
        sampler.sample(["a red circle"], seed=2**32)
    assert sampler.sample([]) == []


def test_control_tokens_in_a_prompt_are_plain_text():
    tokens = make_sampler().encode("<|im_end|>"[:6])["tokens"]
    ids = make_model().ids
    assert list(tokens).count(ids.im_end) == 1 and tokens[0] == ids.im_start
