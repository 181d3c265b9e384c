"""The plugin for lmms-eval against a stub of its interface: what it registers, and what it answers."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
import types

import pytest
from evaluation.evaluation_fakes import TeacherSampler
from PIL import Image

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"


@pytest.fixture
def model_of(monkeypatch, tmp_path):
    """Makes a model of a sampler as lmms-eval does, with stand-ins for its base class and registry."""
    registered = {}

    class lmms:
        def __init__(self):
            self.task_dict = {}

    def register_model(name):
        return lambda cls: registered.setdefault(name, cls)

    stubs = {"lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.model": {"lmms": lmms}}
    stubs["lmms_eval.api.registry"] = {"register_model": register_model}
    for name, held in stubs.items():
        module = types.ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    names = importlib.import_module("lmms_plugin.models").AVAILABLE_MODELS
    (name,) = names
    module = importlib.import_module(f"lmms_plugin.models.{name}")

    def make(sampler, **options):
        restored = types.SimpleNamespace(source="the teacher", digest="0")
        monkeypatch.setattr(module, "load_sampler", lambda *given, **settings: (sampler, restored))
        return registered[name](output_dir=str(tmp_path), **options)

    yield make
    for loaded in [name for name in sys.modules if name.startswith("lmms_plugin")]:
        del sys.modules[loaded]


def request(prompt, doc_id, visual=None):
    return types.SimpleNamespace(args=(prompt, {}, visual, doc_id, "draw_it", "test"))


def test_answers_are_json_of_text_and_images_in_order_and_drawn_once(model_of):
    sampler = TeacherSampler()
    model = model_of(sampler, batch_size="4", seed="3")
    requests = [request("a red circle", 0), request("two blue squares", 1), request("a red circle", 0)]
    answers = [json.loads(answer) for answer in model.generate_until(requests)]
    assert [set(answer) for answer in answers] == [{"text", "images"}] * 3
    assert answers[0] == answers[2] != answers[1] and "circle" in answers[0]["text"]
    for answer in answers:
        (path,) = answer["images"]
        assert Image.open(path).size == (32, 32)
    assert len(sampler.asked) == 2
    assert [json.loads(answer) for answer in model.generate_until(requests)] == answers
    assert len(sampler.asked) == 2, "what is drawn is not drawn again"


def test_what_it_cannot_do_says_so(model_of):
    model = model_of(TeacherSampler())
    model.task_dict = {"draw_it": {"test": {0: "doc"}}}
    with pytest.raises(NotImplementedError, match="prompts with images"):
        model.generate_until([request("make it red", 0, lambda doc: ["an image"])])
    with pytest.raises(NotImplementedError, match="likelihoods"):
        model.loglikelihood([])
    assert json.loads(model.generate_until([request("a red circle", 0, lambda doc: [])])[0])["images"]
