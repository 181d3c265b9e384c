"""Importers on small files of the published schemas, made here; no record is anybody's."""

import base64
import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from process_gen.data.errors import BadTrajectory, TooManyBadTrajectories
from process_gen.data.formats import writers
from process_gen.data.formats.opening import FORMATS, open_stored
from process_gen.data.importers import IMPORTERS, verl_omni
from process_gen.data.sources import SOURCES, open_source
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import targets_of

SIZE = (8, 8)


def picture(shade, kind="PNG"):
    file = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), (shade,) * 3).save(file, kind)
    return file.getvalue()


def held(shade):
    return {"bytes": picture(shade), "path": None}


def shades(trajectory):
    return [None if turn.image is None else int(turn.image.mean()) for turn in trajectory.turns]


def write_json(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def write_parquet(path, *rows):
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_tar(path, *samples):
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for kind, content in members.items():
                if content is not None:
                    content = content.encode() if isinstance(content, str) else content
                    info = tarfile.TarInfo(f"{number:03}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return path


def store(name, folder, *rows):
    """Writes rows as an importer's project does; returns where, and how the first one is named."""
    if name == "genref":
        return write_tar(folder / "a.tar", *rows), "a.tar, key 000"
    if name == "unireason":
        (folder / "a.json").write_text(json.dumps(rows))
        return folder / "a.json", "a.json, record 1"
    if name.startswith(("unicot", "verl_omni")):
        return write_json(folder / "a.jsonl", *rows), "a.jsonl, line 1"
    return write_parquet(folder / "a.parquet", *rows), "a.parquet, row 0"


def opened(name, path):
    """As a config opens it."""
    source = open_source({"source": name, "path": str(path), "on_error": "fail"}, SIZE)
    again = pickle.loads(pickle.dumps(source))  # as another process has it
    for index in range(len(source)):
        assert shades(source[index]) == shades(again[index])
    return source


def read(name, folder, *rows):
    """The trajectories of rows, stored and opened."""
    source = opened(name, store(name, folder, *rows)[0])
    return [source[index] for index in range(len(source))]


@pytest.fixture
def files(tmp_path):
    """Image files 1.png to 9.png, each of its shade times ten."""
    for shade in range(1, 10):
        (tmp_path / f"{shade}.png").write_bytes(picture(10 * shade))
    return tmp_path


def test_every_importer_is_a_source_of_a_config():
    assert set(SOURCES) == {*FORMATS, *IMPORTERS, "records", "scenes"}
    with pytest.raises(ValueError, match="unknown form of a data set 'genreff'; did you mean genref"):
        open_stored("x", SIZE, form="genreff")


# ------------------------------------------------------------------- the rows

DONE = "Everything is good. No editing needed."
TRACE = "Text Reasoning Trace"
KINDS = [
    {"type": "T2I_SFT", "txt": "a cat", "image": "x", "image_path": "1.png"},
    {"instruction": "make it red", "input_image": ["1.png"], "output_image": "2.png"},
    {
        "prompt": "a dog",
        "explanation": "a dog has four legs",
        TRACE: "THOUGHT 1: add a leg <image_start>[reasoning_image_1]<image_end> THOUGHT 2: good",
        "img_path": "3.png",
        "reasoning_image_1": "4.png",
    },
    {"prompt": "a dog", "explanation": "", TRACE: "nothing to do", "img_path": "3.png"},
]


def part(kind, content, **flags):
    content = base64.b64encode(content).decode() if isinstance(content, bytes) else content
    return {"type": kind, "content": content, **flags}


PARTS = [
    part("text", "think", need_loss=True),
    part("image", picture(10), need_loss=False, need_vae=True, need_vit=True),
    part("text", "it should be red", need_loss=True),
    part("image", picture(20), need_loss=True, need_vae=False, need_vit=False),
]
USER = {"role": "user", "content": [part("text", "a cat")], "need_loss": False}
ANSWER = {"role": "assistant", "content": PARTS, "need_loss": True}


def talk(*turns):
    return {"conversation": json.dumps(turns)}


def answered(*parts):
    return talk(USER, {**ANSWER, "content": parts})


def brush(image, turn, source, target, instruction="make it red"):
    shown = {"source_img": source, "target_img": target, "mask_img": source + 1}
    images = {name: {"bytes": picture(shade), "path": f"{shade}.png"} for name, shade in shown.items()}
    return {"img_id": image, "turn_index": turn, "instruction": instruction, **images}


def reflection(count=3, **change):
    images = [
        {"uri": f"{n}.png", "sha256": hashlib.sha256(picture(10 * n)).hexdigest()}
        for n in range(1, count + 1)
    ]
    steps = [{"reflection": f"wrong {n}", "action": "continue", "edit": f"edit {n}"} for n in range(1, count)]
    steps.append({"reflection": "good", "action": "stop", "edit": ""})
    origin = dict(manifest_id="m", source_dataset="d", source_record_id="r", pipeline_variant="direct_parse")
    record = {**origin, "prompt": "a café", "images": images, "steps": steps}
    return {"trajectory_id": verl_omni.identify(record, verl_omni.NAMESPACES[0]), **record} | change


def three_steps(reflection, action, edit):
    return {"steps": [{"reflection": reflection, "action": action, "edit": edit}] * 3}


ROWS = {
    "genref": {
        "bad_image.jpg": picture(10),
        "good_image.jpg": picture(20),
        "reflection.txt": "the cat is blue\n",
        "prompt.txt": "a red cat",
        "subset.txt": "general",
    },
    "unicot_reflection": {
        "data_id": "u1",
        "prompt": "a cat",
        "input_image": ["1.png", "2.png"],
        "output_image": ["2.png", None],
        "edit": ["make it red", DONE],
        "eval": ["long", "fine, long"],
        "eval_summary": ["it is blue", ""],
    },
    "unicot_breakdown": {
        "data_id": "b",
        "prompt": "a cave",
        "subtasks": ["a", "b", None],
        "subtask_images": ["1.png", "2.png", None],
    },
    "unireason": {},
    "irg": talk(USER, ANSWER),
    "magicbrush": brush(7, 1, 10, 20),
    "verl_omni": reflection(),
    "verl_omni_atoms": reflection(),
    "zebra_cot": {
        "Question": "Solve <image_start>[problem_image_1]<image_end> quickly",
        TRACE: "THOUGHT 0: draw <image_start>[reasoning_image_1]<image_end> THOUGHT 1: done",
        "Final Answer": "left",
        "problem_image_1": held(10),
        "reasoning_image_1": held(20),
    },
    "thinkmorph": {
        "image_list": [picture(10), picture(20)],
        "instruction_list": ["which way?"],
        "output_text_list": ["<think>look</think><image_start>", "<image_end><answer>left</answer>"],
    },
    "bagel_t2i": {"image": picture(10), "captions": json.dumps({"short": "a cat", "long": "a very red cat"})},
    "bagel_edit": {
        "image_list": [picture(10), picture(20), picture(30)],
        "instruction_list": [["red", "make it red"], ["fat"]],
    },
}
"""A row of each that is read."""
VERL_OMNI = (
    ({"extra": 1}, "line must have .* and no more: look at extra"),
    ({"pipeline_variant": "other"}, "pipeline_variant is none of direct_parse"),
    ({"images": []}, "steps has 3 values, expected 0"),
    ({"prompt": " "}, "prompt is empty"),
    (three_steps("a", "stop", ""), r"steps\[0\].action must be 'continue'"),
    (three_steps("a", "continue", ""), r"steps\[0\].edit must be a text"),
    (three_steps("", "continue", "a"), r"steps\[0\].reflection is empty"),
)
REFUSED = {
    "genref": (
        ({"reflection.txt": " "}, "reflection.txt is empty"),
        ({"prompt.txt": None}, "prompt.txt is missing"),
        ({"good_image.jpg": None}, "good_image is missing, there are bad_image.jpg, prompt.txt"),
        ({"subset.txt": "other"}, "subset.txt is none of general"),
        ({"bad_image.jpg": b"no"}, r"turns\[0\].image is no readable PNG"),
        ({"prompt.txt": b"\xe9"}, "prompt.txt is not UTF-8"),
    ),
    "unicot_reflection": (
        ({"output_image": ["2.png", "3.png"]}, "output_image must be null at its end"),
        ({"output_image": ["3.png", None]}, r"output_image\[0\] is not input_image\[1\]"),
        ({"edit": ["make it red", "more"]}, r"edit\[1\] does not say that no editing .*'more'"),
        ({"edit": [DONE, DONE]}, r"edit\[0\] says that no editing is needed, and an image follows"),
        ({"edit": ["a"]}, "edit has 1 values, expected 2"),
        ({"eval": ["x", " "]}, r"eval\[1\] is empty"),
        ({"prompt": None}, "prompt is missing"),
        ({"input_image": []}, "input_image is empty"),
    ),
    "unicot_breakdown": (
        ({"subtasks": ["No breakdown needed.", None, None]}, "subtasks needs no breakdown, so the row"),
        ({"subtasks": ["a", None, "b"]}, r".*go on behind subtasks\[1\]"),
        ({"subtask_images": ["1.png", None, None]}, r"subtask_images\[1\] is missing"),
        ({"subtasks": [None] * 3}, "subtasks is empty"),
    ),
    "unireason": (
        ({"txt": "a"}, "line is of no kind that is known"),
        ({**KINDS[1], "input_image": ["1.png", "2.png"]}, "input_image is no image"),
        ({**KINDS[2], "reasoning_image_1": None}, "reasoning_image_1 is missing"),
        ({**KINDS[2], TRACE: "<image_start>[reasoning_image_1]<image_end>"}, ".* reasoning_image_1 is empty"),
        ({**KINDS[2], "input_image": "1.png"}, "input_image: a correction of an edit has no place"),
        ({**KINDS[0], "image_path": "../1.png"}, r"turns\[0\].image leaves the folder: '../1.png'"),
    ),
    "irg": (
        ({"conversation": "{"}, "conversation is not JSON"),
        (talk(), "conversation has no image"),
        (answered(PARTS[0]), "conversation has no image"),
        (answered(part("audio", "x")), r"conversation\[1\].content\[0\] is neither text nor"),
        (answered(part("image", "no!", need_loss=True)), r".*content\[0\].content is not base64"),
        (talk(USER, {"role": "assistant", "content": [part("text", "x")]}), ".*is neither true nor false"),
        (talk(USER, {"role": "tool", "content": "x"}), r"conversation\[1\] is no turn"),
        (talk(USER, ANSWER, USER), r"conversation\[2\]: the user's text has no place"),
        (answered(PARTS[0], part("text", "y", need_loss=False), *PARTS[1:]), ".*with and without"),
        (talk(ANSWER), "prompt is empty"),
    ),
    "magicbrush": (
        ([brush(7, 1, 10, 20), brush(7, 3, 20, 30)], "turn_index is 3, and turn 2 of the image is due"),
        ([brush(7, 2, 10, 20)], "turn_index is 2, and turn 1"),
        ([brush(7, 1, 10, 20), brush(7, 2, 40, 30)], "source_img of turn 2 is not target_img of the turn be"),
        ({"instruction": " "}, "instruction is empty"),
        ({"target_img": None}, "target_img is missing"),
    ),
    "verl_omni": VERL_OMNI,
    "verl_omni_atoms": VERL_OMNI,
    "zebra_cot": (
        ({"Question": "<image_start>[a]<image_end>" * 2}, "Question shows 2 images, a prompt has room for"),
        ({TRACE: "words"}, f"{TRACE} shows no image, there is nothing to draw"),
        ({"reasoning_image_1": None}, "reasoning_image_1 is missing"),
        ({"Final Answer": None}, "Final Answer is missing"),
    ),
    "thinkmorph": (
        ({"image_list": [picture(10)], "output_text_list": ["a"]}, ".*nothing to draw"),
        ({"output_text_list": ["a"]}, "output_text_list has 1 values, expected 2"),
        ({"instruction_list": ["a", "b"]}, "instruction_list has 2 values, expected 1"),
        ({"output_text_list": ["a", "<image_end>"]}, r"output_text_list\[1\] is empty"),
    ),
    "bagel_t2i": (
        ({"captions": "{"}, "captions is not JSON"),
        ({"captions": "{}"}, "captions is not an object of texts"),
    ),
    "bagel_edit": (
        ({"image_list": [picture(1)]}, ".*there is no edit"),
        ({"instruction_list": [["a"]]}, "instruction_list has 1 values, expected 2"),
        ({"instruction_list": [["a"], []]}, r"instruction_list\[1\] is not a list of texts"),
    ),
}
"""By importer: what changes the row, or other rows, and what is said of them."""


@pytest.mark.parametrize(
    ("name", "rows", "message"), [(name, *case) for name, cases in REFUSED.items() for case in cases]
)
def test_what_cannot_be_mapped_is_named(files, name, rows, message):
    path, where = store(name, files, *(rows if isinstance(rows, list) else [ROWS[name] | rows]))
    with pytest.raises(BadTrajectory, match=f"{where}: {message}"):
        opened(name, path)


# --------------------------------------------------------- what becomes of them


def test_genref(tmp_path):
    row = ROWS["genref"]
    write_tar(tmp_path / "genref_0.tar", row, {**row, "prompt.txt": "a dog"})
    write_tar(tmp_path / "genref_1.tar", row)
    source = opened("genref", tmp_path)
    assert [source[i].prompt for i in range(len(source))] == ["a red cat", "a dog", "a red cat"]
    found = source[0]
    assert shades(found) == [10, 20] and [turn.refines for turn in found.turns] == [False, True]
    assert found.turns[0].after == "the cat is blue" and found.turns[1].before is None
    assert targets_of(found.turns) == [1, 1], "the bad image is no target"
    assert found.metadata == {"subset": "general", "source": "Gen-Ref", "author": "model"}
    assert found.uid == f"{tmp_path.name}:000"


def test_unicot(files):
    (found,) = read("unicot_reflection", files, ROWS["unicot_reflection"])
    assert found.uid == "u1" and shades(found) == [10, 20]
    assert [turn.after for turn in found.turns] == ["it is blue", "fine, long"]
    assert found.turns[1].instruction == "make it red"
    assert [turn.image_ok for turn in found.turns] == [False, True] and targets_of(found.turns) == [1, 1]
    (found,) = read("unicot_breakdown", files, ROWS["unicot_breakdown"])
    assert shades(found) == [10, 20] and [turn.plan for turn in found.turns] == [Plan("a", ""), Plan("b", "")]


def test_unireason(files):
    drawn, edited, refined, fine = read("unireason", files, *KINDS)
    assert drawn.prompt == "a cat" and shades(drawn) == [10]
    assert edited.instruction == "make it red" and edited.prompt_image.mean() == 10 and shades(edited) == [20]
    assert shades(refined) == [30, 40] and refined.turns[0].plan == Plan("a dog has four legs", "")
    assert [(t.before_weight, t.image_weight) for t in refined.turns] == [(0, 0), (1, 1)]
    assert refined.turns[1].instruction == "add a leg" and refined.turns[1].after == "good"
    assert fine.turns[0].after == "nothing to do" and fine.turns[0].before is None and fine.turns[0].image_ok


def test_irg(tmp_path):
    (found,) = read("irg", tmp_path, ROWS["irg"])
    assert found.prompt == "a cat" and shades(found) == [10, 20]
    first, second = found.turns
    assert first.plan == Plan("think", "") and second.instruction == "it should be red"
    weights = [(t.before_weight, t.image_weight, t.image_ok) for t in found.turns]
    assert weights == [(1, 0, False), (1, 1, True)]
    assert found.metadata["turn_fields"][0] == {"need_vae": True, "need_vit": True}


def test_magicbrush(tmp_path):
    rows = [brush(7, 2, 20, 30, "and fat"), brush(8, 1, 50, 60), brush(7, 1, 10, 20)]
    source = opened("magicbrush", write_parquet(tmp_path / "train-0.parquet", *rows))
    first, second = source[0], source[1]
    assert len(source) == 2 and (first.uid, second.uid) == ("7", "8") and shades(first) == [20, 30]
    assert first.instruction == "make it red" and first.prompt_image.mean() == 10
    assert first.turns[1].plan == Plan("and fat", "") and first.turns[1].before_weight == 0
    assert first.metadata["licence"] == "CC-BY-4.0" and first.metadata["author"] == "human"
    assert source.object(0)["turns"][1]["mask"]["bytes"] == picture(21), "the mask is kept"
    writers.write_folder(tmp_path / "out", writers.objects(source))
    again = open_stored(tmp_path / "out", SIZE)
    assert again.object(0)["turns"][1]["mask"]["bytes"] == picture(21)
    assert again[0].metadata["turn_fields"][1]["mask"]["path"].endswith(".png")
    with pytest.raises(BadTrajectory, match="column turn_index is missing"):
        read("magicbrush", tmp_path, {"img_id": 1})


def test_verl_omni_is_one_sequence(files):
    (found,) = read("verl_omni", files, reflection())
    assert shades(found) == [10, 20, 30] and [t.after for t in found.turns] == ["wrong 1", "wrong 2", "good"]
    assert [t.instruction for t in found.turns] == [None, "edit 1", "edit 2"]
    assert targets_of(found.turns) == [2, 2, 2], "a draft known to be bad is no target"
    (files / "2.png").write_bytes(picture(99))
    with pytest.raises(BadTrajectory, match=r"line 1: turns\[1\].image is another file .* says: '2.png'"):
        read("verl_omni", files, reflection())


def test_verl_omni_is_what_that_project_trains_on(files):
    found = read("verl_omni_atoms", files, reflection())
    assert [shades(one) for one in found] == [[30], [10, None], [20, None], [30], [20], [30]]
    assert [one.prompt for one in found] == ["a café"] * 4 + [""] * 2
    assert [t.after for one in found[1:4] for t in one.turns[:1]] == ["wrong 1", "wrong 2", "good"]
    assert [one.turns[0].image_weight for one in found] == [1, 0, 0, 0, 1, 1]
    assert found[1].turns[1].instruction == "edit 1"
    assert [one.instruction for one in found[4:]] == ["edit 1", "edit 2"]
    assert [one.prompt_image.mean() for one in found[4:]] == [10, 20]
    assert len({one.uid for one in found}) == 6


def test_verl_omni_there_and_back_is_the_same(files, tmp_path):
    records = [reflection(), reflection(1, prompt="b"), reflection(2)]
    records[1]["trajectory_id"] = verl_omni.identify(
        {k: v for k, v in records[1].items() if k != "trajectory_id"}, verl_omni.NAMESPACES[1]
    )
    source = opened("verl_omni", write_json(files / "trajectories.jsonl", *records))
    assert verl_omni.write_verl_omni(tmp_path / "back", writers.objects(source)) == 3
    lines = (tmp_path / "back" / "trajectories.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert (tmp_path / "back" / "1.png").read_bytes() == (files / "1.png").read_bytes()
    writers.write_parquet(tmp_path / "ours", writers.objects(source))
    ours = open_stored(tmp_path / "ours", SIZE)
    verl_omni.write_verl_omni(tmp_path / "again", writers.objects(ours))
    assert (tmp_path / "again" / "trajectories.jsonl").read_text().splitlines() == lines


def test_verl_omni_of_other_trajectories(files, tmp_path):
    def written(target, turns):
        source = open_stored(write_json(files / "a.jsonl", {"uid": "x", "prompt": "a", "turns": turns}), SIZE)
        verl_omni.write_verl_omni(target, writers.objects(source))

    draft = {"image": "1.png", "inspect": "a"}
    written(tmp_path / "out", [draft, {"refine": "b", "image": "2.png", "inspect": "yes"}])
    found = opened("verl_omni", tmp_path / "out")[0]
    assert shades(found) == [10, 20] and found.turns[1].after == "yes"
    for turns, message in (
        ([{"image": "1.png"}], r"turns\[0\] has no inspection"),
        ([{**draft, "instruction": "a", "description": "b"}], r"turns\[0\] has a plan"),
        ([draft, {"refine": "x"}], r"turns\[1\] has no image"),
        ([draft, draft], r"turns\[1\] is no correction"),
        ([{**draft, "image_ok": False}], "the last image is right, and no other"),
        ([{**draft, "image_weight": 0.5}], r"turns\[0\] has weights"),
    ):
        with pytest.raises(BadTrajectory, match=f"'x' has no place in verl-omni's form: .*{message}"):
            written(tmp_path / "none", turns)
        assert not (tmp_path / "none").exists()


def test_zebra_cot(tmp_path):
    maze = ROWS["zebra_cot"]
    chess = {**maze, "Question": "THOUGHT 1: draw a line", "reasoning_image_2": held(30)}
    chess[TRACE] = "a <image_start>[reasoning_image_1]<image_end> <image_start>[reasoning_image_2]<image_end>"
    line, maze = read("zebra_cot", tmp_path, chess, maze)
    assert (maze.prompt, maze.instruction) == ("Solve", "quickly") and maze.prompt_image.mean() == 10
    assert shades(maze) == [20]
    assert maze.turns[0].plan == Plan("draw", "") and maze.turns[0].after == "done\nleft"
    assert shades(line) == [20, 30] and line.turns[1].before is None and line.turns[1].after == "left"
    assert line.prompt == "THOUGHT 1: draw a line" and line.prompt_image is None


def test_thinkmorph(tmp_path):
    (found,) = read("thinkmorph", tmp_path, ROWS["thinkmorph"])
    assert found.prompt == "" and found.instruction == "which way?" and shades(found) == [20]
    assert found.turns[0].plan == Plan("<think>look</think>", "")
    assert found.turns[0].after == "<answer>left</answer>"


def test_bagel_t2i(tmp_path):
    dog = {"image": picture(20), "captions": json.dumps({"short": "a dog"})}
    found = read("bagel_t2i", tmp_path, ROWS["bagel_t2i"], dog)
    assert [one.prompt for one in found] == ["a cat", "a very red cat", "a dog"]
    assert [shades(one) for one in found] == [[10], [10], [20]]


def test_bagel_edit_with_its_info_file(tmp_path):
    (tmp_path / "data").mkdir()
    path = write_parquet(tmp_path / "data" / "chunk_0.parquet", *[ROWS["bagel_edit"]] * 2)
    info = tmp_path / "info.json"
    for name in (str(path), "data/chunk_0.parquet"):
        info.write_text(json.dumps({name: {"num_row_groups": 1, "num_rows": 2}}))
        source = opened("bagel_edit", info)
        assert len(source) == 4, "two ways to say the first edit, each a trajectory"
        assert [source[i].instruction for i in range(2)] == ["red", "make it red"]
        assert source[0].prompt_image.mean() == 10 and shades(source[0]) == [20, 30]
        assert source[0].turns[1].plan == Plan("fat", "") and source[0].turns[1].before_weight == 0
    for content, message in (
        (
            {str(path): {"num_row_groups": 2, "num_rows": 2}},
            "of 2 rows, and it has 1 of 2: make the file anew",
        ),
        ([], "says nothing of parts"),
    ):
        info.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            opened("bagel_edit", info)


def test_what_is_refused_is_counted(files):
    chain = ROWS["unicot_reflection"]
    path = write_json(files / "a.jsonl", chain, chain | {"edit": ["a", "b"]}, chain | {"data_id": "u2"})
    source = open_stored(path, SIZE, "skip", "unicot_reflection")
    with pytest.raises(BadTrajectory, match=r"line 2: edit\[1\] does not say"):
        source[1]
    assert np.array_equal(source[2].image, source[0].image) and source.turns() == 5
    path = write_json(files / "b.jsonl", *[reflection(prompt="")] * 3)
    with pytest.raises(TooManyBadTrajectories, match="3 of 3 lines of .*b.jsonl are bad"):
        open_stored(path, SIZE, "skip", "verl_omni")
    assert len(open_stored(path, SIZE, "skip", "verl_omni", 1.0)) == 0
