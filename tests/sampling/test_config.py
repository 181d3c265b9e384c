"""Settings are checked where they are built."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sampling_models import LAYOUT, make_model, random_params

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.sampling import PromptError, Sampler, SamplerConfig, SamplerError, decisions
from process_gen.sampling.decisions import Opens
from process_gen.sampling.prompts import encode_prompt, encode_turn, make_prompt
from process_gen.sampling.rows import Row
from process_gen.trajectory.stages import Mode, draft


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
        ("decision_temperature", -0.1),
        ("refine_threshold", 1.5),
        ("max_turns", 0),
        ("answer_tokens", 2),
        ("max_flow_steps", 5),
        ("mode", "sketchy"),
        ("seed", -1),
    ],
)
def test_a_bad_setting_is_named(key, value):
    with pytest.raises(SamplerError, match=rf"sampling\.{key} must be .* got "):
        SamplerConfig(**{key: value})


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(SamplerError, match="config.sampling 'text_scal'; did you mean text_scale"):
        SamplerConfig.of({"flow_steps": 3}, text_scal=2.0)


def test_settings_come_from_plain_values():
    config = SamplerConfig.of({"flow_steps": 3, "interval": [0.2, 1.0], "mode": "plan_only"}, seed=5)
    assert config == SamplerConfig(flow_steps=3, interval=(0.2, 1.0), mode=Mode.PLAN_ONLY, seed=5)


def make_sampler(model=None, **settings) -> Sampler:
    return Sampler(
        model or make_model(), random_params(), scenes_tokenizer(), SamplerConfig(**settings), rows=2
    )


def test_a_full_context_has_room_for_so_many_turns():
    full = make_model(dataclasses.replace(LAYOUT, context="full"))
    with pytest.raises(SamplerError, match="sampling.max_turns is 8, .* layout.turns = 5"):
        make_sampler(full)
    make_sampler(full, mode="single_pass")
    make_sampler(full, max_turns=5)


def test_a_slot_is_there_or_not():
    for slot in ("before", "after"):
        with pytest.raises(SamplerError, match=rf"layout.{slot} must be 0 or at least 3 to sample, got 2"):
            make_sampler(make_model(dataclasses.replace(LAYOUT, **{slot: 2})))
    without = make_model(dataclasses.replace(LAYOUT, before=0))
    make_sampler(without)
    with pytest.raises(SamplerError, match="layout.before is 0"):
        make_sampler(without, mode="plan_only")


def test_given_inspections_are_left_out_where_the_layout_has_no_slot_for_them():
    turn = draft(np.zeros((*LAYOUT.image_size, 3), np.uint8), None, "a red circle")
    row = Row(0, None, 0, given=(turn,))
    bare = dataclasses.replace(LAYOUT, after=0)
    for layout, after in ((LAYOUT, True), (bare, False)):
        assert (encode_turn(make_model(layout), scenes_tokenizer(), turn)["after"] is not None) == after
        assert (Opens.INSPECT in row.choices("after_image", SamplerConfig(), layout)) == after


def test_decisions_are_made_at_a_temperature_of_their_own():
    assert SamplerConfig(temperature=0.7).decides_at == 0.7
    assert SamplerConfig(temperature=0.7, decision_temperature=0.0).decides_at == 0.0


MODES = {
    "process": ("plan image", "inspect refine plan image end", "refine plan image end"),
    "plan_only": ("plan", "end", "end"),
    "single_pass": ("image", "end", "end"),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_says_what_may_follow(mode):
    for draw, wanted in zip(("after_prompt", "after_image", "after_text"), MODES[mode], strict=True):
        found = decisions.choices(draw, Mode(mode), LAYOUT)
        assert found == {Opens[name.upper()] for name in wanted.split()}


def test_the_layout_takes_choices_away():
    whole = decisions.choices("after_image", Mode.PROCESS, LAYOUT)
    assert decisions.choices("after_image", Mode.PROCESS, LAYOUT, 1) == whole - {Opens.REFINE}
    uninspected = dataclasses.replace(LAYOUT, after=0)
    assert decisions.choices("after_image", Mode.PROCESS, uninspected) == whole - {Opens.INSPECT}
    wordless = dataclasses.replace(LAYOUT, before=0)
    assert decisions.choices("after_text", Mode.PROCESS, wordless) == {Opens.IMAGE, Opens.END}
    assert decisions.choices("after_prompt", Mode.PROCESS, wordless) == {Opens.IMAGE}


@pytest.mark.parametrize(
    ("prompts", "seed", "message"),
    [
        (["a red circle", " \n"], None, "the prompt is empty"),
        (
            ["a red circle left of a blue square and a green star"],
            None,
            "12 tokens, 8 fit .layout.prompt = 10",
        ),
        (["a red circle"] * 2, [1, 2, 3], "2 prompts and 3 seeds"),
        (["a red circle"], 2**32, "seed"),
        (["a red <refine> circle"], None, "<refine>"),
        (["a red </des> circle"], None, "</des>"),
        (["a red <|im_end|> circle"], None, r"<\|im_end\|>"),
        (["a red \ud83d circle"], None, "an unpaired surrogate"),
    ],
)
def test_prompts_are_checked_before_any_work(prompts, seed, message):
    with pytest.raises(PromptError, match=message):
        make_sampler().sample(prompts, seed=seed)


def test_no_prompts_are_no_trajectories():
    assert make_sampler().sample([]) == []


def test_a_part_of_a_control_token_is_plain_text():
    model = make_model()
    prompt = make_prompt(model, "<|im_end|>"[:6], None)
    tokens, ids = encode_prompt(model, scenes_tokenizer(), prompt)["text"], model.ids
    assert list(tokens).count(ids.im_end) == 1 and tokens[0] == ids.im_start
