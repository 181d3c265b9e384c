"""The task wise: answers as the official code reads them, data, overall numbers, official files, a judge."""

import itertools
import json

import numpy as np
import pytest
from chat_fakes import endpoint
from PIL import Image

from process_gen.evaluation import pipeline
from process_gen.evaluation.stages import evaluate
from process_gen.evaluation.statistics import score_interval
from process_gen.evaluation.tasks import make_task, wise
from process_gen.evaluation.tasks.base import Doc, Judgement, Row, TaskError, Unjudged
from process_gen.services.options import ServiceError

IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "answer, marks",
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", (2, 1, 0)),
        ("**Consistency**: 2\n**Realism**: 1\n**Aesthetic Quality**: 0", (2, 1, 0)),
        ("**Consistency:** 2\n**Realism:** 1\n**Aesthetic Quality:** 0", None),
        ("2\n1\n0", (2, 1, 0)),
        (" 2 \n\n1\n0\n", (2, 1, 0)),
        ("Consistency: 2\nRealism: 2\nAesthetic Quality: 1", (2, 2, 1)),
        ("Consistency: 3\nRealism: 1\nAesthetic Quality: 0", None),  # out of range
        ("Consistency：2\nRealism：1\nAesthetic Quality：0", None),
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0\nConsistency: 1", (1, 1, 0)),
        ("consistency 2, REALISM 1, aesthetic quality: 0", (2, 1, 0)),
        ("Consistency: 2\nRealism: 1", None),
        ("2\n1", None),
        ("2\n1\n0\n0", None),
        ("", None),
        ("I cannot judge this picture.", None),
    ],
)
def test_legacy_answers(answer, marks):
    found = wise.read_legacy(answer)
    assert (found and tuple(found.details.values())) == marks


@pytest.mark.parametrize(
    "answer, score",
    [
        ("Score: 1", 1),
        ("score 0", 0),
        ("**Score:** 1", None),
        ("1", 1),
        (" 0\n", 0),
        ("0\n1", None),
        ("Score: 10", None),
        ("Score: 2", None),
        ("Score：1", None),
        ("Score: 0\nScore: 1", 0),
        ("Underscore 1", 1),
        ("", None),
    ],
)
def test_verified_answers(answer, score):
    found = wise.read_verified(answer)
    assert (found and found.score) == score


def test_categories_by_the_id_alone():
    sizes = {"legacy": (400, 167, 133, 100, 100, 100), "verified": (400, 120, 120, 120, 120, 120)}
    for edition, expected in sizes.items():
        names = [wise.category(prompt_id, edition) for prompt_id in range(1, 1001)]
        assert tuple(names.count(name) for name in wise.CATEGORIES) == expected
        assert names == sorted(names, key=wise.CATEGORIES.index)
        weights = wise.AGGREGATIONS[wise.EDITIONS[edition].weights]  # overall = mean over the images
        assert [round(1000 * weight) for weight in weights.values()] == list(expected)
    assert wise.category(521, "legacy") == "TIME" and wise.category(521, "verified") == "SPACE"


LEGACY = {
    "CULTURE": [(2, 2, 2), (1, 2, 1)],  # 1 and (.7 + .4 + .1) / 2 = .6, so .8
    "TIME": [(1, 1, 1)],  # .5
    "SPACE": [(0, 2, 2)],  # (.4 + .2) / 2 = .3
    "BIOLOGY": [(2, 2, 2)],  # 1
    "PHYSICS": [(0, 0, 0)],  # 0
    "CHEMISTRY": [(1, 0, 2)],  # (.7 + .2) / 2 = .45
}


def legacy_score(prompt_id):
    choices = LEGACY[wise.category(prompt_id, "legacy")]
    return wise.read_legacy("\n".join(map(str, choices[prompt_id % len(choices)]))).score


def verified_score(prompt_id):
    return float(prompt_id <= 400 or 881 <= prompt_id <= 910)  # all of culture, 30 of 120 in chemistry


@pytest.mark.parametrize(
    "edition, score, expected",
    [
        # .32 + .0835 + .0399 + .1 + 0 + .045; .32 + .12 * 2.25
        ("legacy", legacy_score, (0.5884, 0.59, 3.05 / 6)),
        ("verified", verified_score, (0.425, 0.43, 1.25 / 6)),  # .4 + .12 / 4
    ],
)
def test_three_overall_numbers_worked_out_by_hand(edition, score, expected):
    task, ids = make_task("wise", {"edition": edition}), range(1, 1001)
    groups, scores = [wise.category(i, edition) for i in ids], [score(i) for i in ids]
    found = {
        name: score_interval(groups, list(map(str, ids)), scores, weights).mean
        for name, weights in task.formulas(wise.CATEGORIES).items()
    }
    assert found == pytest.approx(dict(zip(wise.AGGREGATIONS, expected, strict=True)))
    told = zip(ids, groups, scores, strict=True)
    rows = [Row(Doc(str(i), "", group), 0, 0, Judgement(one)) for i, group, one in told]
    own = found[wise.EDITIONS[edition].weights]
    assert task.summary(rows) == pytest.approx({"missing_ids": 0, "official_overall": own})


def entry(prompt_id, **others):
    told = {"Prompt": f"prompt {prompt_id}", "Explanation": f"because {prompt_id}", "Subcategory": "Food"}
    return {"Category": "Culture", "prompt_id": prompt_id, **told, **others}


def test_data_of_a_folder_and_of_files(tmp_path):
    for stem, ids in zip(wise.STEMS, ((2, 1), (500,), (900,)), strict=True):
        (tmp_path / f"{stem}.json").write_text(json.dumps([entry(prompt_id) for prompt_id in ids]))
        (tmp_path / f"{stem}_rewrite.json").write_text("[]")
    docs = wise.read_data(wise.data_files(tmp_path, "legacy"), "legacy")
    assert [doc.doc_id for doc in docs] == ["1", "2", "500", "900"]
    target = {"explanation": "because 1", "subcategory": "Food"}
    assert docs[0] == Doc("1", "prompt 1", "CULTURE", target)
    with pytest.raises(TaskError, match="no cultural_common_sense_verified.json, .* and no merge.json"):
        wise.data_files(tmp_path, "verified")
    (tmp_path / "merge.json").write_text(json.dumps([entry(3)]))
    assert [doc.doc_id for doc in wise.read_data(wise.data_files(tmp_path, "verified"), "verified")] == ["3"]
    (tmp_path / "natural_science.json").unlink()
    (tmp_path / "final_data.json").write_text(json.dumps([entry(4, Hint="look")]))
    assert wise.data_files(tmp_path, "legacy") == [tmp_path / "final_data.json"]
    assert wise.data_files(tmp_path / "final_data.json", "legacy") == [tmp_path / "final_data.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "data.json: "),
        ("{}", "expected a list of prompts, got dict"),
        ("[1]", "entry 0: expected an object"),
        (json.dumps([entry(1), entry(1)]), "prompt_id 1 comes twice"),
        (json.dumps([entry("1")]), "entry 0: prompt_id must be a whole number"),
        (json.dumps([entry(1001)]), "entry 0: prompt_id must be a whole number from 1 to 1000"),
        (json.dumps([entry(1, Prompt=None)]), "entry 0: Prompt must be a text"),
        (json.dumps([entry(1, Explanation=" ")]), "entry 0: Explanation must be a text"),
    ],
)
def test_broken_data_name_file_and_entry(tmp_path, text, message):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(TaskError, match=message):
        wise.read_data([tmp_path / "data.json"], "legacy")


@pytest.fixture
def data(tmp_path):
    """All 1,000 ids, with prompts that hold braces."""
    ids = range(1, 1001)
    lines = [entry(n, Prompt=f"p{n} {{explanation}}", Explanation=f"e{n}") for n in ids]
    for name in ("final_data.json", "merge.json"):
        (tmp_path / name).write_text(json.dumps(lines))
    return str(tmp_path)


def rows_of(task, score=1.0, seed=0, answer="said"):
    details = {"score": int(score)}
    if task.edition == "legacy":
        details = dict.fromkeys(wise.MARKS, 2.0 * score)
    judgement = Judgement(score, details=details, raw={"answer": answer})
    return [Row(doc, seed, 0, judgement) for doc in task.docs()]


def test_prompts_have_their_group_by_id_and_their_place(data):
    legacy = make_task("wise", {"data": data}).docs()
    verified = make_task("wise", {"data": data, "edition": "verified"}).docs()
    assert len(legacy) == 1000 and legacy[520].group == "TIME" and verified[520].group == "SPACE"
    task = make_task("wise", {"data": data})
    assert [task.place(legacy[6], index) for index in (0, 1)] == ["7.png", None]
    assert legacy[6].input == "p7 {explanation}"
    assert legacy[6].target == {"explanation": "e7", "subcategory": "Food"}


def test_files_of_the_other_edition_and_missing_ones_are_refused(data, tmp_path):
    file = tmp_path / "natural_science_verified.json"
    file.write_text(json.dumps([entry(1)]))
    with pytest.raises(TaskError, match="_verified.json is by its name no file of edition=legacy"):
        make_task("wise", {"data": str(file)}).docs()
    both = f"{file}:{tmp_path / 'merge.json'}"
    with pytest.raises(TaskError, match="prompt_id 1 comes twice"):
        make_task("wise", {"data": both, "edition": "verified"}).docs()
    assert len(make_task("wise", {"data": str(file), "edition": "verified"}).docs()) == 1
    with pytest.raises(TaskError, match="wise needs data=PATH"):
        make_task("wise").docs()
    with pytest.raises(TaskError, match="wise.data: there is no /nowhere"):
        make_task("wise", {"data": "/nowhere"}).docs()


def judged(answers, data, **options):
    """What the judge makes of answers given one after the other, and the requests."""
    pytest.importorskip("openai")
    with endpoint(lambda number, body: answers[number]) as served:
        task = make_task("wise", {"data": data, "model": "m", "base_url": served.url, **options})
        judge = task.judge()
        return judge, judge(task.docs()[6], IMAGE), served.requests


def test_the_judge_of_legacy_asks_again_after_marks_out_of_range(data):
    good = "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"
    judge, judgement, requests = judged(["**Consistency:** 2", good.replace("2", "5"), good], data)
    assert judgement.score == pytest.approx(0.8) and judgement.raw["answer"] == good
    assert judgement.details == {"consistency": 2, "realism": 1, "aesthetic_quality": 0}
    assert judge.protocol == "wise-legacy (own rubric)" and len(requests) == 3
    body = requests[0]
    text = body["messages"][1]["content"][0]["text"]
    assert 'PROMPT: "p7 {explanation}"\nEXPLANATION: "e7"\n' in text
    assert (body["temperature"], body["max_tokens"]) == (0, 2000)
    assert wise.read_legacy(text.split("as in")[1])
    with pytest.raises(Unjudged):
        judged(["no idea"] * 3, data)


def test_the_judge_of_verified(data):
    judge, judgement, requests = judged(["**Score:** 1", "Score: 10", "Score: 1"], data, edition="verified")
    assert judgement.score == 1 and judgement.details == {"score": 1}
    assert judge.protocol == "wise-verified (own rubric)" and requests[0]["max_tokens"] == 500
    assert wise.read_verified(requests[0]["messages"][1]["content"][0]["text"].split("as in")[1]).score == 0


def test_a_rubric_of_the_users_is_asked_and_named(data, tmp_path):
    rubric, system = tmp_path / "rubric.txt", tmp_path / "system.txt"
    rubric.write_text("Look: {prompt_data['Prompt']} / {prompt_data['Explanation']} {other}")
    system.write_text("Be fair.\n")
    judge, _, requests = judged(["2\n2\n2"], data, rubric=str(rubric), system=str(system))
    assert requests[0]["messages"][0]["content"] == "Be fair."
    assert requests[0]["messages"][1]["content"][0]["text"] == "Look: p7 {explanation} / e7 {other}"
    assert judge.protocol.startswith("wise-legacy (rubric ")
    rubric.write_text("Look: {prompt}")
    with pytest.raises(TaskError, match="rubric.txt: the rubric has no {explanation}"):
        judged([], data, rubric=str(rubric))
    with pytest.raises(TaskError, match="none.txt: No such file"):
        judged([], data, system=str(tmp_path / "none.txt"))


def test_all_three_formulas_stand_side_by_side_and_none_with_a_category_missing(data):
    for edition, own in (("legacy", "legacy weights"), ("verified", "verified weights")):
        formulas = make_task("wise", {"edition": edition}).formulas(wise.CATEGORIES)
        assert next(iter(formulas)) == own and dict(formulas) == dict(wise.AGGREGATIONS)
        assert all(sum(weights.values()) == pytest.approx(1) for weights in formulas.values())
    partial = make_task("wise").formulas(wise.CATEGORIES[:2])
    assert partial == {"mean of the categories seen (no WISE score)": {"CULTURE": 0.5, "TIME": 0.5}}


def test_the_summary_counts_missing_ids_and_has_an_overall_only_without(data):
    task = make_task("wise", {"data": data})
    rows = rows_of(task, 1.0)
    assert task.summary(rows) == pytest.approx({"missing_ids": 0, "official_overall": 1})
    assert task.summary(rows[:-3]) == {"missing_ids": 3}
    assert task.summary([]) == {"missing_ids": 1000}
    both = rows + rows_of(task, 0.0, seed=1)
    assert task.summary(both) == pytest.approx({"missing_ids": 0, "official_overall": 0.5})
    assert task.summary(both[1:-1]) == {"missing_ids": 2}


@pytest.mark.parametrize("edition, starts", [("legacy", (1, 401, 701)), ("verified", (1, 401, 641))])
def test_official_files_have_every_prompt_and_its_marks(data, tmp_path, edition, starts):
    task = make_task("wise", {"data": data, "edition": edition})
    out = tmp_path / "out"
    written = task.write_results(rows_of(task, 1.0)[::-1], out)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in written)
    stems = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
    for stem, start, end in zip(stems, starts, (*starts[1:], 1001), strict=True):
        full = json.loads((out / f"{stem}_full_results.json").read_text())
        assert full[0] == {
            "prompt_id": start,
            "prompt": f"p{start} {{explanation}}",
            "key": f"e{start}",
            "image_path": f"{start}.png",
            "evaluation": "said",
        }
        scores = [json.loads(line) for line in open(out / f"{stem}_scores_results.jsonl")]
        assert [line["prompt_id"] for line in scores] == list(range(start, end))
        marks = ["consistency", "realism", "aesthetic_quality"] if edition == "legacy" else ["score"]
        assert list(scores[0]) == ["prompt_id", "Subcategory", *marks]
        assert all(line[mark] == (2 if edition == "legacy" else 1) for line in scores for mark in marks)
    seeds = list(itertools.chain(rows_of(task, 1.0)[:5], rows_of(task, 0.0, seed=1)[:5]))
    files = task.write_results(seeds, tmp_path / "seeds")
    assert sorted({path.parent.name for path in files}) == ["seed_0_image_0", "seed_1_image_0"]
    assert task.write_results([], tmp_path / "none") == []


def test_a_run_that_loses_its_endpoint_goes_on_without_asking_twice(data, tmp_path, monkeypatch, capsys):
    """Images of another program, a judge that costs money, and an endpoint that refuses in the middle."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    theirs, asked = tmp_path / "theirs", []
    theirs.mkdir()
    for number in range(1, 11):
        Image.fromarray(IMAGE).save(theirs / f"{number}.png")

    def answer(number, body):
        asked.append(body["messages"][1]["content"][0]["text"])
        if number == 4:
            return 401, {}, {"error": {"message": "this key is not known"}}
        return "Score: 1" if '"p3 ' not in asked[-1] else "perhaps"

    with endpoint(answer) as served:
        options = {"data": data, "model": "m", "base_url": served.url, "edition": "verified", "workers": "1"}
        cell = pipeline.ask_foreign("wise", options, str(theirs), 0, 0)
        with pytest.raises(ServiceError, match="key"):
            evaluate([(cell, None)], tmp_path / "out", pictures=0)
        text, _, (found,) = evaluate([(cell, None)], tmp_path / "out", pictures=0)
        assert "10 requests" in capsys.readouterr().out
        assert len(found.outcomes) == 9 and found.unjudged == 1 and "unjudged" in text
        again = len(asked)
        evaluate([(cell, None)], tmp_path / "out", pictures=0)
    right = [text for text in asked[:again] if '"p3 ' not in text]
    assert len(set(right)) == 9 and len(right) <= 10, "but for the refused one, each is asked about once"
    assert len(asked) == again + 3, "only the image without a verdict is asked about again"
    official = sorted(path.name for path in (tmp_path / "out").rglob("*_scores_results.jsonl"))
    assert all(name.endswith("(9 of 1,000 prompts)") for name in found.formulas), found.formulas
    assert official, "the official scorer's files are there"
