"""What surrounds a chat judge, where it is wrong: the key, the URL, the folder of answers."""

import numpy as np
import pytest
from chat_fakes import endpoint

from process_gen.evaluation.tasks import make_task
from process_gen.evaluation.tasks.base import Doc, TaskError

pytest.importorskip("openai")

DOC, IMAGE = Doc("7", "a red circle", "all"), np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def judge(tmp_path, monkeypatch):
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (tmp_path / "mine.txt").write_text("a red circle\n")
    data = {"data": str(tmp_path / "mine.txt"), "question": "Is there {prompt}?", "model": "eyes-1"}
    return lambda url, **options: make_task("prompts", {**data, "base_url": url, **options}).judge()


def test_a_line_end_behind_the_key_is_no_part_of_it(judge, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\r\n")
    with endpoint(lambda number, body: "yes") as served:
        assert judge(served.url)(DOC, IMAGE).score == 1
    assert served.requests[0]["authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize("key", ["sk-secret\nsk-other", "sk-secret\u2026", "sk-secret\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(judge, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(TaskError, match="OPENAI_API_KEY holds a letter that no key has") as caught:
        judge("http://localhost:1/v1")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://host:port/v1", "http://host:99999/v1", "http://[host/v1", "http://:80/v1"]
)
def test_a_url_that_cannot_be_is_shown(judge, url):
    with pytest.raises(TaskError, match="base_url must be a URL as http://localhost:8000/v1, got 'http:"):
        judge(url)


@pytest.mark.parametrize(
    "url", ["http://me:secret@host:port/v1", "http://me:secret@[host/v1", "http://h/v1?key=secret"]
)
def test_a_url_that_may_hold_a_secret_is_not_shown(judge, url):
    with pytest.raises(TaskError, match="base_url holds a user, a password or a query") as caught:
        judge(url)
    assert "secret" not in str(caught.value)


def test_a_folder_of_answers_that_cannot_be_written_ends_the_run(judge, tmp_path):
    (tmp_path / "file").write_text("")
    with endpoint(lambda number, body: "yes") as served:
        with pytest.raises(TaskError, match="cannot keep answers, cache=.*file: "):
            judge(served.url, cache=str(tmp_path / "file"))(DOC, IMAGE)
