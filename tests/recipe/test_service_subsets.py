"""The parts behind endpoints, against a server on this machine."""

import contextlib
import itertools
import json
import logging
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from recipe_fakes import GRAPH, answer, services

from process_gen.common import files
from process_gen.distributed.stopping import Stopped
from process_gen.experiment import builders, cli
from process_gen.recipe import __main__ as command
from process_gen.recipe import building, making
from process_gen.recipe.output import read_lines
from process_gen.recipe.parts import Later, Skip
from process_gen.services.options import ServiceError
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.record import trajectory_from_json
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import draft
from tests.evaluation.chat_fakes import set_surroundings

pytest.importorskip("openai")

KEY = "sk-secret-0123456789"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    set_surroundings(monkeypatch, KEY)


@pytest.fixture
def config(tmp_path):
    """A recipe by services, for the prompts of a file; the endpoint is set by `at`."""
    (tmp_path / "prompts.txt").write_text("".join(f"a brown dog on sofa {n}\n" for n in range(6)))
    config = cli.load_config("configs/recipe/paper.py:debug_symbolic")
    config.update(dict(world="services", prompts=str(tmp_path / "prompts.txt")))
    config.multi_turn.update(dict(samples=3, rewrites=0.0, attempts=2))
    config.conflict.update(dict(consistent=1, conflicting=2))
    config.alignment.update(dict(aligned=1, misaligned=2, sampled=0.0))
    config.services.chat.update(dict(model="talks", workers=2, retries=0))
    config.services.images.update(dict(model="draws", workers=2, retries=0))
    return config


def at(served, config, **options):
    for name in ("chat", "images"):
        config.services[name].base_url = served.url
        config.services[name].update(options)
    return config


def built(subset, config, folder):
    said = []
    filled = building.build(subset, config, folder, lambda: None, said.append)
    return filled, list(read_lines(folder / subset / "trajectories.jsonl")), said


def test_prompts_become_trajectories_of_steps_and_edits(config, tmp_path):
    with services() as served:
        filled, lines, said = built("multi_turn", at(served, config, price_in=1.0), tmp_path)
    assert not filled.missing and len(lines) == 3
    for line in lines:
        record = trajectory_from_json(line)
        assert all("sha256" in turn and turn["inspect"] == "it shows the step" for turn in line["turns"])
        assert record.metadata["author"] == "model" and record.turns[-1].image
        last = line["turns"][-1]["description"]
        assert last == "a brown dog, an old sofa, a lamp; the dog is on the sofa"
    kinds = [asked.kind for asked in served.requests]
    assert kinds.count("scene_graph") == kinds.count("steps") == kinds.count("generate") == 3
    assert kinds.count("edit") == sum(len(line["turns"]) - 1 for line in lines)
    graphs = [asked for asked in served.requests if asked.kind == "scene_graph"]
    assert graphs[0].fields["response_format"]["json_schema"]["strict"] is True
    assert graphs[0].key == f"Bearer {KEY}"
    assert said[0].startswith("multi_turn: 3 samples, talks: ") and "at the prices given" in said[0]


def test_every_subset_is_made_and_a_second_run_asks_nothing(config, tmp_path):
    with services() as served:
        for subset in building.SUBSETS:
            filled, lines, _ = built(subset, at(served, config), tmp_path)
            assert not filled.missing, subset
            for line in lines:
                if line["metadata"]["kind"] in (making.CONFLICTING, making.MISALIGNED):
                    first = next(i for i, turn in enumerate(line["turns"]) if "refine" in turn)
                    wrong = line["turns"][first - 1]
                    assert wrong["image_ok"] is False and wrong["before_weight"] == wrong["image_weight"] == 0
        before = len(served.requests)
        for subset in building.SUBSETS:
            assert built(subset, config, tmp_path)[0].made == 0
            for path in (tmp_path / subset).glob("*.jsonl"):
                path.unlink()
            (tmp_path / subset / "settings.json").unlink()
            assert built(subset, config, tmp_path)[0].made == 3  # from the kept answers
        assert len(served.requests) == before


def test_malformed_graphs_are_asked_for_again_and_then_named(config, tmp_path):
    bad = itertools.cycle(["no JSON", "{}", json.dumps({**GRAPH, "objects": []})])

    def say(number, asked):
        hopeless = asked.kind == "scene_graph" and "sofa 1" in asked.prompt
        once = number == 0 and asked.kind == "scene_graph"
        return next(bad) if hopeless or once else answer(asked)

    with services(say) as served:
        config.multi_turn.samples = 5
        filled, lines, said = built("multi_turn", at(served, config), tmp_path)
    assert not filled.missing and all("sofa 1" not in line["prompt"] for line in lines)
    asked = [one for one in served.requests if one.kind == "scene_graph" and "sofa 1" in one.prompt]
    assert len(asked) == 3
    (rejected,) = read_lines(tmp_path / "multi_turn" / "rejected.jsonl")
    assert rejected["reason"] == "answers to scene_graph that cannot be read" and rejected["detail"]
    assert "  1 candidates became no sample: answers to scene_graph that cannot be read" in said


def test_a_rate_limit_is_waited_for(config, tmp_path):
    busy = (429, {"Retry-After": "0.7"}, {"error": {"message": "slow down"}})
    with services(lambda number, asked: busy if number == 0 else answer(asked)) as served:
        config.multi_turn.samples = 1
        start = time.monotonic()
        filled, _, _ = built("multi_turn", at(served, config, retries=1), tmp_path)
    assert not filled.missing and time.monotonic() - start >= 0.7


def test_requests_keep_their_distance(config, tmp_path):
    with services() as served:
        world = building.make_world(at(served, config, per_minute=600.0), tmp_path)
        start = time.monotonic()
        for number in range(4):
            world.graph(f"prompt {number}")
        assert time.monotonic() - start >= 0.3


def test_what_the_server_could_not_do_is_tried_again_by_the_next_run(config, tmp_path):
    broken = (500, {"retry-after-ms": "1"}, {"error": {"message": f"out of memory {KEY}"}})
    fails = threading.Event()

    def say(number, asked):
        return broken if "sofa 2" in asked.prompt and not fails.is_set() else answer(asked)

    with services(say) as served:
        config.multi_turn.samples = 6
        at(served, config, workers=3, retries=0)
        filled, lines, said = built("multi_turn", config, tmp_path)
        assert filled.missing == {"multi_turn": 1} and len(lines) == 5
        assert any("gave up (retried by the next run)" in line for line in said)
        assert filled.waiting == 1 and "1 candidates wait for the services" in said[-1]
        with pytest.raises(Stopped, match="multi_turn wait for the services: the same command asks"):
            command.run("multi_turn", config, str(tmp_path))
        fails.set()
        filled, lines, _ = built("multi_turn", config, tmp_path)
    assert not filled.missing and filled.made == 1
    assert sorted(line["uid"] for line in lines) == [f"multi_turn-{n:07d}" for n in range(6)]


def test_a_server_that_does_nothing_but_fail_ends_the_run_and_keeps_what_is_there(config, tmp_path):
    broken = (500, {"retry-after-ms": "1"}, {"error": {"message": "out of memory"}})
    with services(lambda number, asked: answer(asked) if "sofa 0" in asked.prompt else broken) as served:
        at(served, config, workers=1)
        config.multi_turn.samples = 6
        with pytest.raises(ServiceError, match="fails one request after the other: HTTP 500"):
            built("multi_turn", config, tmp_path)
    with services() as served:
        filled, lines, _ = built("multi_turn", at(served, config), tmp_path)
    assert not filled.missing and len({line["uid"] for line in lines}) == 6


def test_what_the_server_refuses_is_not_asked_again(config, tmp_path):
    refusal = (400, {}, {"error": {"message": "against the content policy"}})
    with services(lambda n, asked: refusal if "sofa 2" in asked.prompt else answer(asked)) as served:
        config.multi_turn.samples = 5
        filled, _, _ = built("multi_turn", at(served, config, workers=1), tmp_path)
        (rejected,) = read_lines(tmp_path / "multi_turn" / "rejected.jsonl")
        assert not filled.missing and "content policy" in rejected["detail"]
        before = len(served.requests)
        config.multi_turn.samples = 6
        assert built("multi_turn", config, tmp_path)[0].missing == {"multi_turn": 1}
        assert len(served.requests) == before


@pytest.mark.parametrize("kind", ["scene_graph", "step_check", "edit"])
def test_an_option_that_a_server_refuses_costs_no_prompt(config, tmp_path, kind):
    refusal = (400, {}, {"error": {"message": "unknown field size"}})
    with services(lambda number, asked: refusal if asked.kind == kind else answer(asked)) as served:
        with contextlib.suppress(ServiceError):  # where nothing at all is answered
            built("multi_turn", at(served, config, workers=1), tmp_path)
    assert not list(read_lines(tmp_path / "multi_turn" / "rejected.jsonl"))
    with services() as served:
        assert not built("multi_turn", at(served, config), tmp_path)[0].missing


def test_a_later_run_gets_past_prompts_that_are_refused(config, tmp_path):
    refusal = (400, {}, {"error": {"message": "against the content policy"}})

    def say(number, asked):
        refused = asked.kind == "scene_graph" and "sofa 0" not in asked.prompt
        return refusal if refused else answer(asked)

    with services(say) as served:
        for count in (1, 2):
            config.multi_turn.samples = count
            filled = built("multi_turn", at(served, config, workers=1), tmp_path)[0]
    assert filled.counts == {"multi_turn": 1}
    assert len(list(read_lines(tmp_path / "multi_turn" / "rejected.jsonl"))) == 5


def test_a_stop_waits_for_requests_and_not_for_samples(config, tmp_path):
    def stop():
        if len(served.requests) > 2:
            raise Stopped("SIGTERM was received")

    with services(lambda number, asked: 0.5 if number else answer(asked)) as served:
        with pytest.raises(Stopped):
            building.build("multi_turn", at(served, config), tmp_path, stop, lambda text: None)
        assert len(served.requests) <= 11  # of the 16 of the two samples under way
        assert not list(read_lines(tmp_path / "multi_turn" / "trajectories.jsonl"))
    with services() as again:
        assert not built("multi_turn", at(again, config), tmp_path)[0].missing
    assert len(served.requests) + len(again.requests) < 3 * 12  # what was answered is kept


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.5, 0.02])
def test_a_second_signal_leaves_while_a_server_is_silent(config, tmp_path, pause):
    with services(lambda number, asked: 60.0) as served:
        at(served, config)
        stored = tmp_path / "recipe.json"
        files.write_json(stored, builders.to_json(config))
        words = ["--part=multi_turn", f"--config=configs/recipe/stored.py:{stored}", f"--workdir={tmp_path}"]
        process = subprocess.Popen([sys.executable, "-m", "process_gen.recipe", *words], cwd=ROOT)
        try:
            deadline = time.monotonic() + 120
            while not served.requests and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            time.sleep(pause)
            assert process.poll() is None  # the requests may bring something
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 75
        finally:
            process.kill()
            process.wait()


def test_silence_is_waited_for_as_long_as_asked(config, tmp_path):
    with services(lambda number, asked: 1.0) as served:
        world = building.make_world(at(served, config, timeout=0.2), tmp_path)
        with pytest.raises(Later, match="gave up"):
            world.graph("a dog")


def test_an_image_that_is_none_is_given_up(config, tmp_path):
    def say(number, asked):
        return (200, {}, {"created": 0, "data": [{"url": "http://x"}]}) if asked.kind == "generate" else None

    with services(say) as served:
        world = building.make_world(at(served, config), tmp_path)
        with pytest.raises(Later) as caught:
            world._paint("a dog", "draw a dog", None, 0)
    assert "the reply is no image as base64" in caught.value.detail


def test_steps_that_are_not_accepted_are_drawn_again_and_then_filtered_out(config, tmp_path):
    refused = itertools.count()

    def say(number, asked):
        if asked.kind == "step_check" and ("sofa 0" in asked.prompt or next(refused) == 0):
            return {"ok": False, "reason": "nothing changed"}
        return answer(asked)

    with services(say) as served:
        config.multi_turn.samples = 5
        filled, lines, _ = built("multi_turn", at(served, config, workers=1), tmp_path)
    assert not filled.missing and sum(line["metadata"]["filtered"] for line in lines) >= 1
    (rejected,) = read_lines(tmp_path / "multi_turn" / "rejected.jsonl")
    assert rejected["detail"] == "step 1: nothing changed"


def sampled(*names):
    image = np.zeros((8, 8, 3), np.uint8)
    turns = tuple(draft(image + n, Plan(f"add {name}", name)) for n, name in enumerate(names))
    return SampledTrajectory("a dog and a cat", turns, "0001")


def test_a_models_own_steps_are_judged_and_corrected(config, tmp_path):
    def say(number, asked):
        if asked.kind == "plan_check" and "horse" in asked.prompt:
            return {
                "consistent": False,
                "analysis": "a horse was not asked for",
                "correction": "make it a cat",
            }
        if asked.kind == "draft_check" and "add horse" in asked.prompt:
            return {"aligned": False, "analysis": "it shows a cow", "correction": "make it a horse"}
        if asked.kind == "last_step":
            return {"missing": True, "instruction": "add the rest", "description": "all of it"}
        return answer(asked)

    rng = np.random.default_rng(0)
    with services(say) as served:
        world = building.make_world(at(served, config), tmp_path)
        told = dict(subset="conflict", imageless=0.0, most_turns=8)
        made = making.self_sampled(world, sampled("dog", "horse", "cat"), rng, **told)
        assert [turn.refines for turn in made.turns] == [False, False, True, False]
        assert made.turns[1].after == "a horse was not asked for"
        assert made.turns[2].instruction == "make it a cat"
        assert made.turns[3].plan.instruction == "add the rest"
        assert [turn.before_weight for turn in made.turns] == [0, 0, 1, 1]
        short = making.self_sampled(world, sampled("horse"), rng, **told | {"imageless": 1.0})
        assert short.turns[-1].image is None and short.kind == making.CONFLICTING
        assert making.self_sampled(world, sampled("dog"), rng, **told).kind == making.CONSISTENT
        made = making.self_sampled(world, sampled("dog", "horse"), rng, **told | {"subset": "alignment"})
        assert made.kind == making.MISALIGNED and made.turns[1].after == "it shows a cow"


def test_only_the_last_step_of_a_planted_trajectory_must_show_the_whole_prompt(config, tmp_path):
    whole = []
    with services() as served:
        world = building.make_world(at(served, config), tmp_path)
        for seed in range(8):
            served.requests.clear()
            world.planted(f"a dog, number {seed}", np.random.default_rng(seed), True, False)
            checks = [asked.prompt for asked in served.requests if asked.kind == "step_check"]
            *early, last = ["should show the whole prompt" in text for text in checks]
            assert not any(early)
            whole.append(last)
    assert any(whole)


def test_a_correction_without_words_makes_no_sample(config, tmp_path):
    empty = {"consistent": False, "analysis": "wrong", "correction": " "}
    with services(lambda number, asked: empty) as served:
        world = building.make_world(at(served, config), tmp_path)
        with pytest.raises(Skip, match="an answer without its words"):
            told = dict(subset="conflict", imageless=0.0, most_turns=8)
            making.self_sampled(world, sampled("dog"), np.random.default_rng(0), **told)


def test_the_key_is_in_no_file_no_log_and_no_message(config, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)

    def say(number, asked):
        if asked.kind == "step_check":
            return {"ok": True, "reason": f"as {asked.key} says"}
        return answer(asked)

    with services(say) as served:
        filled, _, said = built("multi_turn", at(served, config), tmp_path)
        world = building.make_world(config, tmp_path)
    assert not filled.missing
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    shown = [*said, caplog.text, *capfd.readouterr(), repr(world), repr(vars(world)), repr(config)]
    assert len(kept) > 10
    assert not any(KEY.encode() in one for one in kept) and not any(KEY in one for one in shown)


def test_services_are_checked_before_anything_is_asked(config, tmp_path, monkeypatch):
    with pytest.raises(ServiceError, match="config.services.chat needs model=NAME"):
        config.services.chat.model = ""
        building.make_world(config, tmp_path)
    config.services.chat.model = "talks"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ServiceError, match="no key for talks: set OPENAI_API_KEY, or base_url"):
        building.make_world(config, tmp_path)
