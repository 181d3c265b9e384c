"""Tasks by name with options as text, and prompts of one's own."""

import dataclasses
import sys
from typing import ClassVar, Literal

import pytest

from process_gen.evaluation import tasks
from process_gen.evaluation.tasks import TASKS, Task, make_task
from process_gen.evaluation.tasks.base import TaskError


@dataclasses.dataclass(frozen=True)
class Odd(Task):
    name: ClassVar[str] = "odd"
    version: ClassVar[str] = "1"
    share: float = 0.5
    strict: bool = False
    kind: Literal["one", "other"] = "one"

    def docs(self):
        return []


@pytest.fixture
def odd(monkeypatch):
    monkeypatch.setitem(TASKS, "odd", Odd)


def test_options_are_converted_by_the_type_of_their_field(odd):
    options = {"share": "1e-2", "strict": "True", "kind": "other", "images": "3"}
    assert make_task("odd", options) == Odd(images=3, share=0.01, strict=True, kind="other")
    assert make_task("odd") == Odd() and make_task("odd", {"strict": "no"}) == Odd()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("wize", {}, "unknown task 'wize'; did you mean wise?"),
        ("odd", {"shares": "1"}, "unknown option of odd 'shares'; did you mean share?"),
        ("odd", {"share": "half"}, "odd.share must be a number, got 'half'"),
        ("odd", {"strict": "maybe"}, "odd.strict must be true or false, got 'maybe'"),
        ("odd", {"kind": "ohter"}, "unknown odd.kind 'ohter'; did you mean other?"),
        ("odd", {"images": "2.5"}, "odd.images must be a whole number, got '2.5'"),
        ("odd", {"images": "0"}, "odd.images must be at least 1, got 0"),
        ("odd", {"name": "x"}, "unknown option of odd 'name'"),
    ],
)
def test_errors_name_the_option(odd, name, options, message):
    with pytest.raises(TaskError) as caught:
        make_task(name, options)
    assert message in str(caught.value)


def test_every_task_is_made_without_options_and_says_what_it_needs():
    for name, kind in tasks.TASKS.items():
        task = make_task(name)
        assert type(task) is kind and kind.name == name and kind.version and kind.__doc__
        assert hash(task) == hash(make_task(name))


def prompts(tmp_path, text, name="mine.jsonl"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return make_task("prompts", {"data": str(tmp_path / name)})


def test_prompts_of_json_lines_have_ids_groups_and_more(tmp_path):
    task = prompts(tmp_path, '{"prompt": "a", "id": 3, "group": "g", "thing": "cup"}\n\n{"prompt": "b"}\n')
    first, second = task.docs()
    assert (first.doc_id, first.input, first.group, first.target) == ("3", "a", "g", {"thing": "cup"})
    assert (second.doc_id, second.input, second.group, second.target) == ("00003", "b", "all", {})
    assert task.judge() is None and list(task.formulas(["g"])) == ["score"]


def test_prompts_of_a_table_are_its_rows(tmp_path):
    text = '\ufeffid,prompt,group,thing\n7,"a red circle, left of a square",g,cup\n\n,b,,\n'
    one, two = prompts(tmp_path, text, "mine.csv").docs()
    assert (one.doc_id, one.input, one.group) == ("7", "a red circle, left of a square", "g")
    assert one.target == {"thing": "cup"} and (two.doc_id, two.input, two.group) == ("00004", "b", "all")
    (only,) = prompts(tmp_path, "prompt\tid\na\t3\n", "mine.TSV").docs()
    assert (only.input, only.doc_id) == ("a", "3")
    (line,) = prompts(tmp_path, '{"prompt": "a"}', "mine.ndjson").docs()
    assert line.input == "a"
    for name, text, message in (
        ("mine.csv", "id,text\n1,a\n", "its first line names no column prompt"),
        (
            "mine.csv",
            "prompt\na circle, left of a star\n",
            "line 2: more fields than columns; quote the prompt",
        ),
        ("mine.csv", 'prompt\n"a circle\nb\n', "after line 1: unexpected end of data"),
        (
            "mine.json",
            '[{"prompt": "a"}]',
            "prompts are read from a text file with one a line, from JSON lines",
        ),
    ):
        with pytest.raises(TaskError, match=message):
            prompts(tmp_path, text, name).docs()


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "line 1: "),
        ("[1]", "line 1: expected an object with a prompt, got list"),
        ('{"id": 1}', "line 1: prompt must be a text, got None"),
        ('{"prompt": "a", "group": 1}', "line 1: group must be a text, got 1"),
        ('{"prompt": "a", "id": "../x"}', "line 1: id must be a number or a text that can be a file name"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}', "line 2: id '1' comes twice"),
        ("\n", "holds no prompt"),
    ],
)
def test_broken_prompts_name_the_line(tmp_path, text, message):
    with pytest.raises(TaskError, match=message):
        prompts(tmp_path, text).docs()


@pytest.mark.parametrize(
    "answer, score",
    [
        ("Yes.", 1),
        ("no", 0),
        ("**Yes**, it does", 1),
        ("\n no\n", 0),
        ("yesterday", None),
        ("It is: yes", None),
    ],
)
def test_an_answer_is_its_first_word(answer, score):
    found = tasks.prompts._read(answer)
    assert (found and found.score) == score


def test_a_judge_without_its_client_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "process_gen.evaluation.chat", raising=False)
    monkeypatch.delitem(sys.modules, "process_gen.services.endpoint", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    task = dataclasses.replace(prompts(tmp_path, '{"prompt": "a"}'), question="{prompt}?", model="m")
    with pytest.raises(TaskError, match=r"the judge of prompts needs the openai client: pip install"):
        task.judge()
