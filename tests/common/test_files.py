"""JSON is refused in one way; a file is written whole or stays as it was."""

import json

import pytest

from process_gen.common import files


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\xff", "utf-8"),
        ('{"a": ', "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"a": 1} x', "Extra data"),
    ],
)
def test_what_is_no_json_is_a_value_error(text, why):
    with pytest.raises(ValueError, match=why):
        files.from_json(text)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, mark):
    place = tmp_path / "a.json"
    place.write_text(mark + '{"prompt": "café"}', encoding="utf-8")
    assert files.read_json(place) == {"prompt": "café"}
    assert files.from_json(mark + "[1]") == [1]


def test_what_was_there_stays_until_the_new_file_is_complete(tmp_path):
    place = tmp_path / "a.json"
    files.write_json(place, {"a": 1})
    with files.whole(place) as scratch:
        scratch.write_text("half")
        assert files.read_json(place) == {"a": 1}
        scratch.write_text('{"a": 2}')
    assert files.read_json(place) == {"a": 2}


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    place = tmp_path / "a.json"
    files.write_json(place, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(place, float("nan"), allow_nan=False)
    with pytest.raises(KeyboardInterrupt), files.whole(place) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(place.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [place]


def test_two_writers_do_not_share_a_scratch_file(tmp_path):
    place = tmp_path / "a.txt"
    with files.whole(place) as one, files.whole(place) as other:
        one.write_text("one")
        other.write_text("other")
    assert place.read_text() == "one"
    assert list(tmp_path.iterdir()) == [place]
