"""Arms in which somebody else plans or inspects: the oracle of the scenes world, and a chat model."""

from __future__ import annotations

import dataclasses
import json

import pytest
from chat_fakes import endpoint, set_surroundings
from evaluation_fakes import ask, canvas

from process_gen.evaluation import outsiders, pipeline
from process_gen.evaluation.arms import make_arm, objections
from process_gen.evaluation.stages import evaluate
from process_gen.evaluation.tasks.base import TaskError
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.sampling.outside import Situation, Unsaid
from process_gen.scenes.grammar import read_request
from process_gen.services.options import ServiceError
from process_gen.trajectory.markup import Plan, write_plan
from process_gen.trajectory.stages import Turn
from process_gen.weights.restore import load_sampler
from tests.sampling.sampling_models import LAYOUT, SpelledTokenizer, make_model, random_params

PROMPT = "a red circle and a blue star"


def situation(*turns: Turn, room: int = 4) -> Situation:
    return Situation(PROMPT, turns, room, lambda answer: None)


def drafted(description: str, *things: str) -> Turn:
    return Turn(canvas(*things), write_plan(Plan("go on", description)))


def test_the_scenes_oracle_plans_from_the_canvas_and_inspects_against_the_plan():
    requests = {PROMPT: read_request(PROMPT)}
    planner, inspector = outsiders.ScenesPlanner(requests), outsiders.ScenesInspector(requests)
    right = drafted("red circle at b2", "red circle b2")
    both = drafted("red circle at b2, blue star at c3", "red circle b2", "blue star c3")
    first, second, done, all_at_once = planner(
        [situation(), situation(right), situation(right, both), situation(room=1)]
    )
    assert "red circle" in first.description and "star" not in first.description
    assert "red circle" in second.description and "blue star" in second.description and done is None
    assert "red circle" in all_at_once.description and "blue star" in all_at_once.description
    wrong = drafted("red circle at b2, blue star at c3", "red circle b2", "green star c3")
    fine, faulty = inspector([situation(right), situation(right, wrong)])
    assert fine.correction is None and fine.text
    assert "star at c3" in faulty.text and "blue" in faulty.text + faulty.correction
    (unsaid,) = planner([situation(Turn(canvas().repeat(2, 0).repeat(2, 1)))])  # too large an image
    assert isinstance(unsaid, Unsaid) and "images" in unsaid.reason


@pytest.mark.parametrize(
    "arm, message",
    [
        ("planner", "arm 'planner' needs a name, of planner=scenes, planner=chat"),
        ("planner=scene", "unknown planner 'scene'; did you mean scenes"),
        ("no_inspection+inspector=scenes", "nothing is inspected in mode process"),
        ("plan_only+inspector=scenes", "nothing is inspected in mode plan_only"),
        ("single_pass+planner=scenes", "nothing is planned in mode single_pass"),
        ("planner=chat", "planner needs model=NAME"),
    ],
)
def test_arms_that_cannot_be_are_refused(arm, message):
    with pytest.raises((TaskError, ServiceError)) as caught:
        ask(arm, sampler=debug(), per_group=1)
    assert message in str(caught.value)


def test_options_and_prompts_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    (tmp_path / "mine.txt").write_text("a red circle\n")
    told = dict(sampler=debug(), arm_options={"planner": {"modle": "x"}})
    with pytest.raises(TaskError, match="planner=scenes knows the scenes world alone"):
        ask("planner=scenes", "prompts", {"data": str(tmp_path / "mine.txt")}, debug())
    with pytest.raises(TaskError, match="planner=scenes takes no options, got modle"):
        ask("planner=scenes", **told)
    with pytest.raises(TaskError, match="unknown option of planner 'modle'; did you mean model"):
        ask("planner=chat", **told)


def test_who_plans_is_part_of_where_images_are(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    places = []
    for arm, options in (
        ("process", {}),
        ("planner=scenes", {}),
        ("inspector=scenes", {}),
        ("planner=scenes+inspector=scenes", {}),
        ("planner=chat", {"model": "m"}),
        ("planner=chat", {"model": "n"}),
        ("planner=chat", {"model": "m", "guide": "name every cell"}),
        ("planner=chat", {"model": "m", "revision": "2"}),
    ):
        asked, sampler = ask(arm, sampler=debug(), per_group=1, arm_options={"planner": options})
        places.append(asked.place)
        roles = [role for role in outsiders.ROLES if f"{role}=" in arm]
        assert list(outsiders.described(sampler.outside)) == roles
    assert len(set(places)) == len(places)
    both = {"planner": "scenes", "inspector": "scenes"}
    assert make_arm("planner=scenes+inspector=scenes+steps=2").outside == both


def test_probabilities_rank_before_corrections_do():
    likely, unlikely = ({"stopped": "model", "corrections": 0, "doubt": d} for d in (0.3, 0.2))
    unknown = {"stopped": "model", "corrections": 1}
    assert objections(unlikely) < objections(likely) < objections(unknown)
    assert objections({**unlikely, "stopped": "cap"}) > objections(unknown)


# ------------------------------------------------------------------ a chat model


ROOMY = dataclasses.replace(LAYOUT, before=9)


def debug(**changes) -> Sampler:
    config = SamplerConfig(flow_steps=2, decision_temperature=1.0, max_turns=4, **changes)
    return Sampler(make_model(ROOMY), random_params(ROOMY), SpelledTokenizer(), config, rows=2)


@pytest.fixture
def surroundings(monkeypatch, tmp_path):
    pytest.importorskip("openai")
    set_surroundings(monkeypatch, "sk-secret")
    (tmp_path / "mine.txt").write_text("a red circle\na blue square\na green star\n")
    return {"data": str(tmp_path / "mine.txt")}


def drawn_with(served, folder, data, arm, **options):
    """The trajectories of an arm whose chat model is behind `served`."""
    roles = {role: {"model": "m", "base_url": served.url, **options} for role in outsiders.ROLES}
    cell = ask(arm, "prompts", data, debug(), arm_options=roles)
    evaluate([cell], folder, stage="images")
    listing = pipeline.listing_of(folder, cell[0])
    return [listing.sampled(record) for record in listing.records()]


def plans(number, body):
    """Two steps, then done."""
    text = body["messages"][1]["content"][0]["text"]
    if "\n2. " in text:
        return '{"done": true}'
    return "Next:\n```json\n" + json.dumps({"instruction": "#30", "description": "#31"}) + "\n```"


def test_a_chat_model_plans(surroundings, tmp_path, capfd):
    with endpoint(plans) as served:
        found = drawn_with(served, tmp_path / "out", surroundings, "planner=chat+no_inspection", price_in="2")
        asked = len(served.requests)
        again = drawn_with(served, tmp_path / "out", surroundings, "planner=chat+no_inspection")
    assert "m at http://127.0.0.1" in (shown := capfd.readouterr().out)
    assert "planner, at most 15 requests" in shown and "at the prices given" in shown
    assert len(found) == len(again) == 3 and asked == 9 == len(served.requests), "drawn once, asked once"
    for one in found:
        assert [turn.plan for turn in one.turns] == [Plan("#30", "#31")] * 2 and one.stopped == "model"
    first, last = served.requests[0]["messages"], served.requests[-1]["messages"]
    assert "You plan a picture" in first[0]["content"] and len(first[1]["content"]) == 1
    assert "Steps that are left: 4" in first[1]["content"][0]["text"]
    assert last[1]["content"][1]["type"] == "image_url", "it sees the canvas"
    assert served.requests[0]["authorization"] == "Bearer sk-secret"


def test_a_chat_model_inspects(surroundings, tmp_path):
    def answer(number, body):
        assert "This step: " in body["messages"][1]["content"][0]["text"]
        return json.dumps({"inspection": "#40", "correction": "#50"})

    with endpoint(answer) as served:
        found = drawn_with(served, tmp_path / "out", surroundings, "inspector=chat+steps=1")
    for one in found:
        draft, refined = one.turns
        assert draft.after == "#40" and refined.instruction == "#50" and not refined.after


def test_an_answer_that_does_not_fit_is_asked_for_again_with_the_reason(surroundings, tmp_path):
    def answer(number, body):
        if len(body["messages"]) > 2:
            assert "14 tokens, 7 fit" in body["messages"][3]["content"]
            return json.dumps({"instruction": "#30", "description": "#31"})
        return json.dumps({"instruction": "#30" * 9, "description": "#31"})

    with endpoint(answer) as served:
        found = drawn_with(served, tmp_path / "out", surroundings, "planner=chat+plan_only")
    assert len(found) == 3 and all(one.turns[0].plan == Plan("#30", "#31") for one in found)


def test_what_gets_no_answer_is_given_up_and_asked_again_by_the_next_run(surroundings, tmp_path):
    def unsure(number, body):
        return "hm" if "blue square" in body["messages"][1]["content"][0]["text"] else plans(number, body)

    arm, cache = "planner=chat+no_inspection", str(tmp_path / "answers")
    with endpoint(unsure) as served:
        with pytest.raises(
            TaskError, match="1 of 3 trajectories got no usable answer.*none of 3 answers parses"
        ):
            drawn_with(served, tmp_path / "out", surroundings, arm, cache=cache)
    with endpoint(plans) as served:
        found = drawn_with(served, tmp_path / "out", surroundings, arm, cache=cache)
    assert len(found) == 3 and len({one.uid for one in found}) == 3
    assert {len(one.turns) for one in found} == {2} and len(served.requests) == 3


def test_an_endpoint_that_is_down_ends_the_run_in_one_line(surroundings, tmp_path):
    with endpoint(plans) as served:
        pass
    with pytest.raises(ServiceError, match="cannot reach http://127.0.0.1"):
        drawn_with(served, tmp_path / "out", surroundings, "planner=chat", retries="0", timeout="2")


# ------------------------------------------------------------- the shipped weights


@pytest.mark.slow
def test_with_the_oracle_as_planner_the_shipped_weights_draw_what_is_asked_for(tmp_path):
    sampler, _ = load_sampler(rows=8)
    told = dict(options={"groups": "position,four_objects"}, sampler=sampler, per_group=2)
    arms = ("planner=scenes", "planner=scenes+inspector=scenes+steps=2", "plan_only+planner=scenes")
    cells = [ask(arm, **told) for arm in arms]
    _, _, found = evaluate(cells, tmp_path, pictures=0, warm=False)
    for cell in found:
        assert cell.scores["score"].mean == 1 and cell.process["final_plan_right"].mean == 1
        assert cell.missing == 0 and cell.means()["stopped_by_cap"] == 0
    steps = [cell.means()["steps"] for cell in found]
    assert steps[0] > 2 >= steps[1] > steps[2] == 1
    (other,) = evaluate([ask(arms[0], **told)], tmp_path / "again", pictures=0, warm=False)[2]
    images = [[one.facts["images"] for one in cell.outcomes] for cell in (other, found[0])]
    assert images[0] == images[1]


def test_a_sampler_of_anybody_needs_nothing_new():
    assert "planner" not in ask(per_group=1)[0].settings
