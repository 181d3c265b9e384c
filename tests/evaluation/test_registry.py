"""Evaluators by name: the one of the scenes world, and a user's own."""

import numpy as np
import pytest
from evaluation_fakes import teacher

from process_gen.evaluation import evaluator, registry


def test_the_scenes_evaluator_runs_from_a_table_of_options():
    numbers, pictures = registry.run(
        teacher(), {"scenes": {"per_group": 2, "groups": ["colors", "position"]}}
    )
    assert registry.get_evaluator("scenes") is evaluator.scenes
    assert numbers["process/score"] == numbers["process/score/colors"] == 1.0
    assert [image.dtype for image in pictures.values()] == [np.uint8]


def test_a_users_evaluator_joins_and_may_be_replaced(monkeypatch):
    monkeypatch.setattr(registry, "_EVALUATORS", dict(registry._EVALUATORS))

    @registry.register("brightness")
    def brightness(predict, *, prompts):
        images = [trajectory.image for trajectory in predict(prompts, range(len(prompts)))]
        yield "brightness", float(np.mean(images))

    numbers, pictures = registry.run(teacher(), {"brightness": {"prompts": ["a red circle"]}})
    assert 100 < numbers["brightness"] < 130 and pictures == {}


def test_an_unknown_name_lists_the_nearest_before_anything_runs():
    with pytest.raises(KeyError, match="unknown evaluator 'scene'; did you mean scenes"):
        registry.run(None, {"scenes": {}, "scene": {}})
