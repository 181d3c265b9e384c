from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from process_gen.reports import overview, page
from process_gen.trajectory.stages import Turn
from tests.reports import samples

VOID = {"meta", "link", "img"}
KNOWN = VOID | set(
    "html head title style body header nav main article section h1 h2 p div span b i a ol ul li dl dt dd "
    "figure figcaption pre table thead tbody tr th td".split()
)


class Reader(HTMLParser):
    """Collects what a browser would see, and checks that elements nest."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open = [], [], []
        self.text, self.styles, self.comments = "", "", 0
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.text += data

    def handle_comment(self, data):
        self.comments += 1


def build(folder, trajectories, title="Samples", summary=None, results=None) -> tuple[Reader, str]:
    named = [dataclasses.replace(one, uid=f"{i:04d}") for i, one in enumerate(trajectories)]
    path = page.write_page(folder / "index.html", named, title, summary or {}, results)
    content = path.read_bytes().decode("utf-8")
    return Reader(content), content


def check_inert(reader: Reader) -> None:
    assert set(reader.tags) <= KNOWN
    assert reader.comments == 0
    assert reader.tags.count("style") == 1 and reader.styles.strip() == page.CSS.strip()
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name in {
            "lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "dir", "id", "src",
            "alt", "width", "height", "aria-label", "style",
        }  # fmt: skip
        if name == "style":
            assert tag == "ol" and re.fullmatch(r"--rows: [0-9]+", value)
        if name == "src":
            assert tag == "img" and value.startswith("data:image/png;base64,")
        if name == "href":
            assert value == "data:," or (tag == "a" and value.startswith("#t"))
    policies = [v for _, n, v in reader.attributes if n == "content" and "default-src" in v]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


@pytest.mark.parametrize("text", samples.HOSTILE)
def test_hostile_text_is_inert_everywhere(tmp_path, text):
    reader, content = build(
        tmp_path,
        [samples.hostile(text)],
        title=text,
        summary={text: text},
        results=([text, "n"], [[text, 1]]),
    )
    check_inert(reader)
    assert "evil.example" not in reader.styles
    shown = set(content) - {"\n"}
    assert not [c for c in shown if ord(c) < 32 or 0x7F <= ord(c) < 0xA0]
    assert not shown & set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\ufeff")


def test_text_is_shown_as_it_was_written(tmp_path):
    for text in ("<script>alert(1)</script>", "&lt;script&gt;", '"><img src=x onerror="alert(1)">'):
        reader, _ = build(tmp_path, [samples.hostile(text)])
        assert reader.text.count(text) >= 8
    reader, _ = build(tmp_path, [samples.hostile("a \u202eb\0c \x1b[0m")])
    assert "a \\u202ebc \\x1b[0m" in reader.text


def check_order(reader: Reader, expected: list[str]) -> None:
    """Whether texts stand in the first article in this order."""
    place = reader.text.index("0000")
    for text in expected:
        assert text in reader.text[place:], text
        place = reader.text.index(text, place)


def rows(reader: Reader) -> list[str]:
    return [value for _, name, value in reader.attributes if name == "style"]


def test_every_stage_of_every_step_is_there(tmp_path):
    reader, _ = build(tmp_path, [samples.process()])
    check_inert(reader)
    expected = [
        "a red circle left of a blue square", "wrong", "process", "3 steps", "stopped by the model",
        "72 sampling steps", "1.25 s", "seed 7",
        "Step 1", "accepted", "draw a red circle", "the scene", "the circle is right",
        "Step 2", "refined", "add a square", "the square is red", "make it blue",
        "Step 3", "Malformed plan", "<ins> is never closed", "<ins>add a",
        "Malformed refine instruction", "<refine> is never closed", "<refine>move",
        "Verdict", "✓", "a red circle", "✗", "a blue square", "the square is green", "group: two_objects",
    ]  # fmt: skip
    check_order(reader, expected)
    # Five images of the steps and the final one in the gallery.
    assert reader.tags.count("img") == 6
    assert rows(reader) == ["--rows: 6"]


def test_every_turn_of_a_step_is_there(tmp_path):
    reader, _ = build(tmp_path, [samples.corrected_twice()])
    check_inert(reader)
    expected = [
        "2 steps", "Step 1", "accepted", "draw a ring", "draft",
        "Step 2", "refined", "stopped", "add a star", "draft", "Inspection", "the star is red",
        "Refine", "make the star blue", "refined", "Inspection of the correction", "the ring is gone",
        "Refine", "draw the ring again", "refined", "Inspection of the correction", "now all is there",
    ]  # fmt: skip
    check_order(reader, expected)
    assert reader.text.count("Inspection") == 3
    assert reader.tags.count("img") == 5
    # Head, three slots of each of three turns; a step that has less leaves them empty.
    assert rows(reader) == ["--rows: 10"]
    reader, _ = build(tmp_path, [samples.single_pass()])
    assert rows(reader) == ["--rows: 2"] and reader.tags.count("figure") == 1


def test_what_was_given_is_told_from_what_was_sampled(tmp_path):
    reader, _ = build(tmp_path, [samples.process(given=2, prompt_image=samples.image(8), instruction="now")])
    check_order(reader, ["2 turns given", "input image", "now", "draft, given", "draft, given", "refined"])
    assert reader.text.count("given") == 3 and reader.tags.count("img") == 7
    assert "given" not in build(tmp_path, [samples.process()])[0].text


def test_images_are_embedded_pixel_by_pixel_and_big_ones_are_shrunk(tmp_path):
    turns = (Turn(samples.image(1)), Turn(samples.image(2, 900, 1200)))
    reader, _ = build(tmp_path, [samples.process(turns=turns, verdict=None)])
    sources = [value for _, name, value in reader.attributes if name == "src"]
    opened = [Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in sources]
    assert [picture.size for picture in opened] == [(224, 168), (32, 32), (640, 480)]
    assert (opened[1].tobytes()) == samples.image(1).tobytes()
    assert [value for tag, name, value in reader.attributes if (tag, name) == ("img", "class")] == ["px"]


def test_the_head_has_summary_and_results(tmp_path):
    reader, content = build(
        tmp_path,
        [samples.process(), samples.single_pass()],
        title="Held-out scenes",
        summary={"mode": "process", "step": 4000, "guidance": 2.5, "note": None},
        results=(["mode", "mean"], [["process", 0.5], ["single_pass", None]]),
    )
    assert "<title>Held-out scenes</title>" in content
    for text in ("2 trajectories", "4,000", "2.5", "0.500", "single_pass"):
        assert text in reader.text[: reader.text.index("0000")]
    assert content.count('class="n"') == 3
    assert reader.tags.count("article") == 2
    anchors = {value for tag, name, value in reader.attributes if (tag, name) == ("article", "id")}
    links = {value for tag, name, value in reader.attributes if (tag, name) == ("a", "href")}
    assert links == {f"#{anchor}" for anchor in anchors}


def test_no_trajectories_and_no_text_still_make_a_page(tmp_path):
    reader, _ = build(tmp_path, [])
    check_inert(reader)
    assert "0 trajectories" in reader.text
    turns = (Turn(samples.image(1), "", ""),)
    reader, _ = build(tmp_path, [samples.process(prompt="", turns=turns, verdict=None, stopped="cap")])
    check_inert(reader)
    assert reader.text.count("(no text)") == 2
    for text in ("(empty prompt)", "limit reached", "Malformed plan"):
        assert text in reader.text


def test_verdicts_and_tables_in_words():
    assert overview.verdict_line({"ok": True, "constraints": []}) == "right"
    assert overview.verdict_line(samples.process().verdict) == "wrong: the square is green"
    lines = overview.describe([samples.process(uid="0007"), samples.single_pass()]).splitlines()
    assert "0007" in lines[2] and "draw a red circle" in lines[2] and "refined" in lines[3]
    assert "malformed: <ins> is never closed" in lines[4]
    assert "stops" in lines[5] and lines[5].endswith("wrong: the square is green")
    assert "cut at the cap" in lines[7] and lines[7].endswith("not judged")
