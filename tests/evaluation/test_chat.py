"""The chat judge against an endpoint on this machine: what ends a run, what is unjudged, what is kept."""

import base64
import concurrent.futures
import io
import json
import logging
import re
import socket
import threading
import time

import numpy as np
import pytest
from chat_fakes import endpoint, set_surroundings
from PIL import Image

from process_gen.evaluation.tasks import make_task
from process_gen.evaluation.tasks.base import Doc, Unjudged
from process_gen.services.options import ServiceError

pytest.importorskip("openai")

KEY, URL = "sk-secret-0123456789", "http://localhost:1/v1"
DOC = Doc("7", "a red circle", "all")
IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    set_surroundings(monkeypatch, KEY)


@pytest.fixture
def judge(tmp_path):
    """Makes a judge of an endpoint; further options as text."""
    (tmp_path / "mine.txt").write_text("a red circle\na blue square\n")

    def make(url, **options):
        data = {"data": str(tmp_path / "mine.txt"), "question": "Is there {prompt}?"}
        return make_task("prompts", {**data, "model": "eyes-1", "base_url": url, **options}).judge()

    return make


def test_a_request_has_a_system_message_and_the_image_as_png(judge):
    with endpoint(lambda number, body: "Yes.") as served:
        looks = judge(served.url, extra='{"seed": 3, "temperature": null}')
        judgement = looks(DOC, IMAGE)
    (body,) = served.requests
    assert body.pop("path") == "/v1/chat/completions" and body.pop("authorization") == f"Bearer {KEY}"
    system, user = body.pop("messages")
    assert body == {"model": "eyes-1", "max_tokens": 200, "seed": 3}
    assert system["role"] == "system" and isinstance(system["content"], str)
    text, picture = user["content"]
    assert user["role"] == "user" and text == {"type": "text", "text": "Is there a red circle?"}
    head, data = picture["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), IMAGE)
    assert judgement.score == 1 and judgement.raw["answer"] == "Yes."
    told = {name: judgement.raw[name] for name in ("model", "tokens_in", "tokens_out")}
    assert told == {"model": "eyes-1-served", "tokens_in": 100, "tokens_out": 5}


def test_an_answer_that_does_not_parse_is_asked_for_again_three_times_in_all(judge):
    with endpoint(lambda number, body: ["maybe", "", "no"][number]) as served:
        assert judge(served.url)(DOC, IMAGE).score == 0
    assert len(served.requests) == 3
    with endpoint(lambda number, body: f"maybe {number}") as served:
        looks = judge(served.url)
        with pytest.raises(Unjudged, match="7: none of 3 answers parses, the last: 'maybe 2'") as caught:
            looks(DOC, IMAGE)
    assert [reply["answer"] for reply in caught.value.raw] == ["maybe 0", "maybe 1", "maybe 2"]


def test_a_rate_limit_is_waited_for_as_long_as_the_endpoint_says(judge):
    busy = (429, {"Retry-After": "0.8"}, {"error": {"message": "slow down"}})
    with endpoint(lambda number, body: busy if number == 0 else "yes") as served:
        start = time.monotonic()
        assert judge(served.url, retries="1")(DOC, IMAGE).score == 1
    # Without the header the client would wait half a second at most.
    assert time.monotonic() - start >= 0.8 and len(served.requests) == 2


def test_errors_of_the_server_leave_an_image_unjudged_and_then_end_the_run(judge):
    broken = (500, {"retry-after-ms": "1"}, {"error": {"message": "out of memory"}})
    with endpoint(lambda number, body: broken) as served:
        looks = judge(served.url, retries="2", workers="3")
        for _ in range(2):
            with pytest.raises(Unjudged, match="7: http://127.* gave up: HTTP 500: .*out of memory"):
                looks(DOC, IMAGE)
        assert len(served.requests) == 6
        with pytest.raises(ServiceError, match="fails one request after the other: HTTP 500"):
            looks(DOC, IMAGE)
    with endpoint(lambda number, body: "yes" if number % 3 == 2 else broken) as served:
        looks = judge(served.url, retries="0", workers="3")
        for number in range(9):  # never three in a row
            if number % 3 == 2:
                assert looks(DOC, IMAGE).score == 1
            else:
                pytest.raises(Unjudged, looks, DOC, IMAGE)


def test_a_picture_that_the_endpoint_will_not_look_at_is_unjudged(judge):
    refused = (400, {}, {"error": {"message": "content policy", "code": "content_policy_violation"}})
    with endpoint(lambda number, body: refused) as served:
        with pytest.raises(Unjudged, match="HTTP 400: .*content policy"):
            judge(served.url)(DOC, IMAGE)
    assert len(served.requests) == 1


def test_a_time_out_leaves_an_image_unjudged(judge):
    with endpoint(lambda number, body: 0.5) as served:
        with pytest.raises(Unjudged, match="no answer within 0.1 s"):
            judge(served.url, timeout="0.1", retries="0")(DOC, IMAGE)


@pytest.mark.parametrize(
    "body",
    [b"<html>hello</html>", {"choices": []}, {"choices": [{}]}, [1], {"error": "no"}, {"choices": None}],
)
def test_a_reply_that_is_no_completion_leaves_an_image_unjudged(judge, body):
    kind = "text/html" if isinstance(body, bytes) else "application/json"
    for claimed in {kind, "application/json"}:
        with endpoint(lambda number, _: (200, {"Content-Type": claimed}, body)) as served:  # noqa: B023
            with pytest.raises(Unjudged, match="the reply is no chat completion"):
                judge(served.url)(DOC, IMAGE)


def test_no_endpoint_no_key_and_no_model_end_the_run_in_one_line(judge, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ServiceError, match=f"cannot reach {url}: .*refused"):
        judge(url, retries="0")(DOC, IMAGE)
    ends = {401: "refuses the key in OPENAI_API_KEY", 403: "refuses the key", 404: "no model"}
    for status, message in ends.items():
        reply = (status, {}, {"error": {"message": f"bad\n{KEY}"}})
        with endpoint(lambda number, body: reply) as served:  # noqa: B023
            with pytest.raises(ServiceError, match=message) as caught:
                judge(served.url)(DOC, IMAGE)
        assert len(served.requests) == 1 and KEY not in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ServiceError, match="no key for eyes-1: set OPENAI_API_KEY, or base_url"):
        judge("")
    with endpoint(lambda number, body: "yes") as served:  # which wants no key
        monkeypatch.setenv("OPENAI_BASE_URL", served.url)
        assert judge("")(DOC, IMAGE).score == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": ""}, "prompts needs model=NAME"),
        ({"workers": "0"}, "prompts.workers must be at least 1, got 0"),
        ({"timeout": "nan"}, "prompts.timeout must be above 0"),
        ({"temperature": "-1"}, "prompts.temperature must not be negative"),
        ({"max_tokens": "-1"}, "prompts.max_tokens must be at least 0, got -1"),
        ({"price_in": "-1"}, "prompts.price_in must not be negative"),
        ({"url": "localhost:8000"}, "base_url must be a URL as"),
        ({"url": "http://host:port/v1"}, "base_url must be a URL as http://localhost:8000/v1, got 'http:"),
        ({"url": "http://host:99999/v1"}, "base_url must be a URL as .*, got 'http:"),
        ({"url": "http://[host/v1"}, "base_url must be a URL as .*, got 'http:"),
        ({"url": "http://:80/v1"}, "base_url must be a URL as .*, got 'http:"),
        ({"url": f"http://me:{KEY}@host/v1"}, "base_url holds a user, a password or a query"),
        ({"url": f"http://me:{KEY}@host:port/v1"}, "base_url holds a user, a password or a query"),
        ({"url": f"http://me:{KEY}@[host/v1"}, "base_url holds a user, a password or a query"),
        ({"url": f"http://h/v1?key={KEY}"}, "base_url holds a user, a password or a query"),
        ({"extra": "{"}, "extra must be a JSON object"),
        ({"extra": "[]"}, "extra must be a JSON object, got list"),
        ({"extra": "gone.json"}, "extra must be a JSON object or a .json file: .*gone.json"),
        ({"extra": '{"model": "other"}'}, "extra must leave model alone"),
        ({"question": "Is there {promt}?"}, "unknown name in the question.*did you mean prompt?"),
    ],
)
def test_options_are_checked_before_anything_is_asked(judge, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        judge(**{"url": URL, **options})
    assert KEY not in str(caught.value)


def test_a_kept_answer_makes_no_request_whatever_the_endpoint_and_others_do(judge, tmp_path):
    cache = str(tmp_path / "answers")
    with endpoint(lambda number, body: "yes") as served:
        first = judge(served.url, cache=cache)(DOC, IMAGE)
        assert len(served.requests) == 1
    with endpoint(lambda number, body: "no") as other:
        looks = judge(other.url, cache=cache)
        assert looks(DOC, IMAGE) == first and not other.requests
        others = [
            ({}, DOC, IMAGE.reshape(6, 4, 3)),
            ({}, Doc("7", "a red square", "all"), IMAGE),
            ({"temperature": "0.5"}, DOC, IMAGE),
            ({"revision": "2"}, DOC, IMAGE),
            ({"model": "eyes-2"}, DOC, IMAGE),
            ({"question": "Do you see {prompt}?"}, DOC, IMAGE),
        ]
        for number, (options, doc, image) in enumerate(others, 1):
            assert judge(other.url, cache=cache, **options)(doc, image).score == 0
            assert len(other.requests) == number
    for file in (tmp_path / "answers").rglob("*.json"):  # damaged files are asked for again
        file.write_text('{"answer"')
    with endpoint(lambda number, body: "no") as served:
        assert judge(served.url, cache=cache)(DOC, IMAGE).score == 0 and len(served.requests) == 1


def test_only_answers_that_parse_are_kept(judge, tmp_path):
    with endpoint(lambda number, body: "maybe") as served:
        looks = judge(served.url, cache=str(tmp_path / "answers"))
        for asked in (3, 6):
            pytest.raises(Unjudged, looks, DOC, IMAGE)
            assert len(served.requests) == asked
    assert not list((tmp_path / "answers").rglob("*.json"))


def test_the_key_is_in_no_file_no_log_and_no_repr(judge, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    replies = [(500, {"retry-after-ms": "1"}, {"error": {"message": KEY}}), f"yes, {KEY}"]
    with endpoint(lambda number, body: replies[number]) as served:
        looks = judge(served.url, cache=str(tmp_path / "answers"), retries="1")
        judgement = looks(DOC, IMAGE)
        looks.announce([DOC], (768, 768))
    (kept,) = (tmp_path / "answers").rglob("*.json")
    assert json.loads(kept.read_text())["answer"] == "yes, ***"
    shown = "".join(capfd.readouterr())
    held = (looks, looks._endpoint, looks._options, judgement)
    for text in (caplog.text, shown, kept.read_text(), *map(repr, held)):
        assert KEY not in text


def test_workers_ask_side_by_side(judge):
    together = threading.Barrier(4, timeout=5)

    def answer(number, body):
        together.wait()
        return "yes" if "circle" in body["messages"][1]["content"][0]["text"] else "no"

    docs = [Doc(str(n), f"a {'circle' if n % 2 else 'square'} {n}", "all") for n in range(8)]
    with endpoint(answer) as served:
        looks = judge(served.url, workers="4")
        with concurrent.futures.ThreadPoolExecutor(looks.workers) as pool:
            found = list(pool.map(lambda doc: looks(doc, IMAGE).score, docs))
    assert found == [0, 1] * 4 and len(served.requests) == 8


def test_the_estimate_is_a_line_of_requests_tokens_and_costs(judge, capsys):
    looks = judge(URL, price_in="2.5", price_out="10")
    letters = 200 * (len(looks._question.system) + len("Is there a red circle?"))
    found = looks.announce([DOC] * 200, (1024, 1024))
    assert found.requests == 200 and found.tokens_out == 200 * 40
    assert found.tokens_in == -(-letters // 4) + 200 * (85 + 170 * 4)  # 768 x 768 has 2 x 2 tiles
    assert found.cost == pytest.approx((found.tokens_in * 2.5 + 8000 * 10) / 1e6)
    line = capsys.readouterr().out
    assert re.fullmatch(r"eyes-1 at http://localhost:1/v1: 200 requests, about [\d,]+ tokens in .*\n", line)
    told = [judge(URL, image_tokens=tokens).announce([DOC], (9, 9)) for tokens in ("10", "30")]
    assert "no prices given" in str(told[0]) and told[1].tokens_in - told[0].tokens_in == 20


def test_the_revision_changes_with_whatever_is_asked(judge):
    one = judge(URL)
    assert one.name == "eyes-1" and one.protocol == "yes or no (own question)" and one.workers == 8
    assert one.revision == judge("http://other:1/v1").revision
    assert one.revision.startswith("as served, asked ")
    others = ({"temperature": "1"}, {"question": "{prompt}?"}, {"revision": "2"}, {"extra": '{"seed": 1}'})
    assert len({one.revision, *(judge(URL, **other).revision for other in others)}) == 5


def test_a_line_end_behind_the_key_is_no_part_of_it(judge, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\n")
    with endpoint(lambda number, body: "yes") as served:
        assert judge(served.url)(DOC, IMAGE).score == 1
    assert served.requests[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["sk-secret\nsk-other", "sk-secret\u2026", "sk-secret\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(judge, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(
        ServiceError, match="OPENAI_API_KEY holds a character that is not printable ASCII"
    ) as caught:
        judge("http://localhost:1/v1")
    assert "sk-" not in str(caught.value)


def test_a_folder_of_answers_that_cannot_be_written_ends_the_run(judge, tmp_path):
    (tmp_path / "file").write_text("")
    with endpoint(lambda number, body: "yes") as served:
        with pytest.raises(ServiceError, match="cannot keep answers, cache=.*file: "):
            judge(served.url, cache=str(tmp_path / "file"))(DOC, IMAGE)
