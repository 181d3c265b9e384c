from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import pytest
from PIL import Image

from process_gen.reports import page
from process_gen.reports.files import ReportError
from process_gen.reports.records import Record, StepRecord, record_of, save_images
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
    written = [
        record_of(trajectory, f"{i:04d}", save_images(folder, f"{i:04d}", trajectory.steps))
        for i, trajectory in enumerate(trajectories)
    ]
    path = page.write_page(folder / "index.html", written, title, summary, results)
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
            "alt", "width", "height", "aria-label",
        }  # fmt: skip
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
    place = reader.text.index("0000")
    for text in expected:
        assert text in reader.text[place:], text
        place = reader.text.index(text, place)
    # Five images of the steps and the final one in the gallery.
    assert reader.tags.count("img") == 6


def test_images_are_embedded_pixel_by_pixel_and_big_ones_are_shrunk(tmp_path):
    steps = (
        samples.SampledStep(sketch=samples.image(1)),
        samples.SampledStep(sketch=samples.image(2, 900, 1200)),
    )
    reader, _ = build(tmp_path, [samples.process(steps=steps, verdict=None)])
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


def test_no_trajectories_no_images_and_no_text_still_make_a_page(tmp_path):
    reader, _ = build(tmp_path, [])
    check_inert(reader)
    assert "0 trajectories" in reader.text
    empty = samples.process(prompt="", steps=(samples.SampledStep(""),), verdict={}, stopped="cap")
    reader, _ = build(tmp_path, [empty])
    check_inert(reader)
    for text in ("(empty prompt)", "no image", "(no text)", "step limit reached"):
        assert text in reader.text


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "images/../../secret.png", "images\\..\\..\\x", "a\0b"]
)
def test_a_record_cannot_reach_out_of_its_folder(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    record = Record("x", "p", "process", 0, (StepRecord(sketch=path),), "model")
    with pytest.raises(ReportError, match="leads out of|is not a path"):
        page.write_page(tmp_path / "out" / "index.html", [record], "t")
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_link_cannot_lead_out_of_the_folder_either(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "out" / "x.png").symlink_to(tmp_path / "secret.png")
    record = Record("x", "p", "process", 0, (StepRecord(sketch="x.png"),), "model")
    with pytest.raises(ReportError, match="leads out of"):
        page.write_page(tmp_path / "out" / "index.html", [record], "t")


def test_what_is_no_png_is_not_embedded(tmp_path):
    (tmp_path / "x.png").write_text("<svg onload='alert(1)'/>")
    record = Record("x", "p", "process", 0, (StepRecord(sketch="x.png"),), "model")
    with pytest.raises(ReportError, match="cannot read the image"):
        page.write_page(tmp_path / "index.html", [record], "t")


def test_verdict_lines():
    assert page.verdict_line(None) is None
    assert page.verdict_line({"ok": True}) == "right"
    assert page.verdict_line(samples.process().verdict) == "wrong: the square is green"
    assert page.verdict_line({"ok": False}) == "wrong"
    assert page.verdict_line({"score": 1}) == "judged"
