"""Layouts of benchmarks whose own tools score, file by file."""

import numpy as np
import pytest
from PIL import Image

from process_gen.evaluation.tasks import make_task
from process_gen.evaluation.tasks.base import TaskError


def image(path, shade, size=(6, 4)):
    Image.new("RGB", size, (shade, 0, 0)).save(path)
    return path


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def dpg(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "b7.txt").write_text("\ufeffa long prompt\n", encoding="utf-8")
    (folder / "a1.txt").write_text("another")
    (folder / "notes.md").write_text("no prompt")
    return make_task("dpg", {"data": str(folder)})


def test_dpg_tiles_four_images_into_one_file_named_after_the_prompt(dpg, tmp_path):
    docs = dpg.docs()
    assert [(doc.doc_id, doc.input) for doc in docs] == [("a1", "another"), ("b7", "a long prompt")]
    assert dpg.images == 4 and dpg.judge() is None
    images = [
        (doc, index, image(tmp_path / f"{doc.doc_id}{index}.png", 100 * number + 10 * index))
        for number, doc in enumerate(docs)
        for index in range(4)
    ]
    out = tmp_path / "out"
    written = dpg.lay_out(out, images[::-1])
    assert files_of(out) == ["a1.png", "b7.png"] == sorted(path.name for path in written)
    for base, name in ((0, "a1"), (100, "b7")):
        pixels = np.asarray(Image.open(out / f"{name}.png"))
        assert pixels.shape == (8, 12, 3)
        for y, x, shade in ((0, 0, 0), (0, 6, 10), (4, 0, 20), (4, 6, 30)):
            assert (pixels[y : y + 4, x : x + 6, 0] == base + shade).all()
    with pytest.raises(TaskError, match="hold 4 images; its own tool reads them"):
        list(dpg.read_layout(out))


def test_dpg_refuses_tiles_that_are_missing_or_differ(dpg, tmp_path):
    doc = dpg.docs()[0]
    images = [(doc, index, image(tmp_path / f"{index}.png", 0, (6, 4 + index // 3))) for index in range(4)]
    with pytest.raises(TaskError, match="a1: image 1 of 4 is missing"):
        dpg.lay_out(tmp_path / "out", images[:1] + images[2:])
    with pytest.raises(TaskError, match="3.png is 6 x 5, .*0.png is 6 x 4"):
        dpg.lay_out(tmp_path / "out", images)
    (tmp_path / "2.png").write_text("no image")
    with pytest.raises(TaskError, match="2.png"):
        dpg.lay_out(tmp_path / "out", images)
    with pytest.raises(TaskError, match="dpg.images must be 4"):
        make_task("dpg", {"data": dpg.data, "images": "3"})
    one = make_task("dpg", {"data": dpg.data, "images": "1"})
    one.lay_out(tmp_path / "single", images[:1])
    assert [(found.doc_id, index) for found, index, _ in one.read_layout(tmp_path / "single")] == [("a1", 0)]


def test_dpg_refuses_prompts_that_its_tool_would_confuse(dpg, tmp_path):
    (tmp_path / "prompts" / "a1.v2.txt").write_text("x")
    with pytest.raises(TaskError, match="a1.v2.txt: .* up to the first dot"):
        dpg.docs()
    (tmp_path / "prompts" / "a1.v2.txt").unlink()
    (tmp_path / "prompts" / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(TaskError, match="c.txt: not UTF-8 at byte 0"):
        dpg.docs()
    (tmp_path / "prompts" / "c.txt").write_text("\n")
    with pytest.raises(TaskError, match="c.txt is empty"):
        dpg.docs()
    with pytest.raises(TaskError, match="no .txt files"):
        make_task("dpg", {"data": str(tmp_path)}).docs()


@pytest.fixture
def compbench(tmp_path):
    (tmp_path / "color_val.txt").write_text("a green bench\na red apple\n")
    (tmp_path / "3d_spatial_val.txt").write_text("a dog in front of a car.\r\n")
    return {"data": str(tmp_path), "categories": "color+3d_spatial", "images": "2"}


def test_compbench_numbers_images_over_a_category(compbench, tmp_path):
    task = make_task("t2i-compbench", compbench)
    docs = task.docs()
    assert [doc.doc_id for doc in docs] == ["color-0000", "color-0001", "3d_spatial-0000"]
    assert [doc.group for doc in docs] == ["color", "color", "3d_spatial"]
    file, out = image(tmp_path / "any.png", 9), tmp_path / "out"
    task.lay_out(out, [(doc, index, file) for doc in docs for index in range(2)])
    names = [
        "3d_spatial/samples/a dog in front of a car._000000.png",
        "3d_spatial/samples/a dog in front of a car._000001.png",
        "color/samples/a green bench_000000.png",
        "color/samples/a green bench_000001.png",
        "color/samples/a red apple_000002.png",
        "color/samples/a red apple_000003.png",
    ]
    assert files_of(out) == names
    assert all((out / name).read_bytes() == file.read_bytes() for name in names)
    found = [(doc, index) for doc, index, _ in task.read_layout(out)]
    assert found == [(doc, index) for doc in docs for index in range(2)]
    assert task.judge() is None and make_task("t2i-compbench").images == 10
    ten = make_task("t2i-compbench", {**compbench, "images": "10"})
    assert ten.place(docs[1], 9) == "color/samples/a red apple_000019.png"


@pytest.mark.parametrize(
    "text, message",
    [
        ("fine\na_b\n", "color_val.txt, line 2: '_' in a prompt"),
        ("a/b\n", "color_val.txt, line 1: '/' in a prompt"),
        ("a\n\nb\n", "color_val.txt, line 2: empty"),
        ("", "color_val.txt, line 1: empty"),
        ("x" * 245, "color_val.txt, line 1: too long for a file name"),
    ],
)
def test_compbench_refuses_prompts_that_no_file_name_can_hold(compbench, tmp_path, text, message):
    (tmp_path / "color_val.txt").write_text(text)
    with pytest.raises(TaskError, match=message):
        make_task("t2i-compbench", compbench).docs()


@pytest.mark.parametrize("letter, longest", [("x", 244), ("\u00e9", 122), ("\u732b", 81)])
def test_compbench_lays_out_the_longest_name_and_refuses_the_next(compbench, tmp_path, letter, longest):
    (tmp_path / "color_val.txt").write_text(letter * longest)
    task = make_task("t2i-compbench", {**compbench, "categories": "color"})
    (doc,) = task.docs()
    (written,) = task.lay_out(tmp_path / "out", [(doc, 0, image(tmp_path / "any.png", 9))])
    assert written.is_file() and written.name == letter * longest + "_000000.png"
    (tmp_path / "color_val.txt").write_text(letter * (longest + 1))
    with pytest.raises(TaskError, match="line 1: too long for a file name"):
        task.docs()


def test_ids_of_prompts_are_refused_where_no_file_name_holds_them(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "id": "%s"}' % ("\u732b" * 82), encoding="utf-8")
    task = make_task("prompts", {"data": str(path)})
    (doc,) = task.docs()
    (written,) = task.lay_out(tmp_path / "out", [(doc, 0, image(tmp_path / "any.png", 9))])
    assert written.is_file()
    path.write_text('{"prompt": "a", "id": "%s"}' % ("\u732b" * 83), encoding="utf-8")
    with pytest.raises(TaskError, match="mine.jsonl, line 1: id must be .* can be a file name"):
        task.docs()


def test_compbench_knows_its_categories_and_names_missing_files(compbench):
    with pytest.raises(TaskError, match="unknown category of t2i-compbench 'colour'; did you mean color?"):
        make_task("t2i-compbench", {**compbench, "categories": "colour"}).docs()
    with pytest.raises(TaskError, match="shape_val.txt: No such file"):
        make_task("t2i-compbench", {**compbench, "categories": "color+shape"}).docs()


def test_layouts_are_found_again_and_empty_folders_are_not(tmp_path):
    (tmp_path / "mine.txt").write_text("one\n\ntwo\n")
    task = make_task("prompts", {"data": str(tmp_path / "mine.txt"), "images": "2"})
    docs, file = task.docs(), image(tmp_path / "any.png", 9)
    written = task.lay_out(tmp_path / "out", [(docs[1], 1, file), (docs[0], 0, file)])
    assert [path.name for path in written] == ["00003_01.png", "00001_00.png"]
    assert files_of(tmp_path / "out") == ["00001_00.png", "00003_01.png"]
    found = [(doc, index) for doc, index, _ in task.read_layout(tmp_path / "out")]
    assert found == [(docs[0], 0), (docs[1], 1)]
    with pytest.raises(TaskError, match="scenes has no layout of files: it judges only what is drawn here"):
        list(make_task("scenes", {"level": "default"}).read_layout(tmp_path))
    with pytest.raises(TaskError, match="holds no image where prompts looks for one"):
        list(task.read_layout(tmp_path / "prompts"))
