"""What models say becomes detections: answers worked out by hand, and tiny models of random weights."""

from __future__ import annotations

import json
import pathlib
import string
import types

import numpy as np
import pytest

from process_gen.evaluation import coloring, detectors
from process_gen.evaluation.geneval import files, prompts
from process_gen.evaluation.geneval.decision import COLORS, Detection
from process_gen.evaluation.options import TaskError
from process_gen.evaluation.pretrained import PACKAGES
from process_gen.evaluation.tasks import make_task

LABELS = ["person", "mouse", "cup"]


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def test_one_query_may_come_with_several_classes_and_the_rest_is_left_out():
    probabilities = np.array([[0.6, 0.3, 0.01], [0.05, 0.7, 0.1]], np.float32)
    pairs = detectors.best_pairs(probabilities)
    assert [pair[:2] for pair in pairs] == [(1, 1), (0, 0), (0, 1), (1, 2)]
    assert len(detectors.best_pairs(np.full((60, 3), 0.5, np.float32))) == detectors.MOST


def test_a_mask_scores_by_its_own_probability_and_its_box_ends_behind_it():
    logits = np.full((8, 10), -3.0, np.float32)
    logits[2:4, 5:9] = _logit(0.9)
    logits[2, 5] = 0  # not above zero, so no part of it
    empty = np.full((8, 10), -1.0, np.float32)
    (found,) = detectors.instances([(0, 2, 0.5), (1, 0, 0.9)], [logits, empty], LABELS)
    assert (found.cls, found.box) == ("cup", (5.0, 2.0, 9.0, 4.0))
    assert found.mask.sum() == 7 and found.score == pytest.approx(0.45, abs=1e-6)


def test_boxes_are_cut_to_the_image_and_scored_by_the_sigmoid():
    logits = np.array([[_logit(0.8), -9, -9], [-9, _logit(0.9), -9]], np.float32)
    places = np.array([[0.5, 0.5, 0.5, 0.25], [0.9, 0.1, 0.4, 0.4]], np.float32)
    best, other = detectors.boxes(logits, places, LABELS, (40, 80))
    assert best.cls == "mouse" and best.box == pytest.approx((56, 0, 80, 12), abs=1e-4)
    assert other.cls == "person" and other.box == pytest.approx((20, 15, 60, 25), abs=1e-4)
    assert (best.score, other.score) == pytest.approx((0.9, 0.8), abs=1e-6) and best.mask is None


def test_labels_are_called_as_geneval_calls_them():
    names = {"2": "keyboard", "0": "mouse", "1": "remote", "10": "cup"}
    assert detectors.class_names(names) == ["computer mouse", "tv remote", "computer keyboard", "cup"]


def test_a_crop_shows_the_mask_on_grey_and_rounds_half_to_even(rng):
    image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[3, 3:5] = True
    shown = np.asarray(coloring.crop(image, Detection("cup", 1, (2.5, 2.5, 4.5, 4.5), mask)))
    assert shown.shape == (2, 2, 3)
    np.testing.assert_array_equal(shown[1], [[153] * 3, image[3, 3]])
    outside = np.asarray(coloring.crop(image, Detection("cup", 1, (-1, 6, 3.5, 9))))
    assert outside.shape == (3, 5, 3) and not outside[:, 0].any() and not outside[2].any()
    np.testing.assert_array_equal(outside[:2, 1:], image[6:, :4])


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r'geneval-hf.detector needs torch: pip install -e "\.\[judges\]"'):
        detectors.load_detector("geneval-hf.detector", "weights")


def test_a_folder_without_weights_is_named(monkeypatch, tmp_path: pathlib.Path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(TaskError, match="x.detector=FOLDER is needed"):
        detectors.load_detector("x.detector", "")
    with pytest.raises(TaskError, match="nowhere: no folder"):
        detectors.load_detector("x.detector", str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "mask3former"}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(TaskError, match=r"no \*\.safetensors"):
        detectors.load_detector("x.detector", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(TaskError, match="unknown kind of detector 'mask3former'; did you mean mask2former"):
        detectors.load_detector("x.detector", str(tmp_path))
    with pytest.raises(TaskError, match="unknown kind of classifier 'mask3former'"):
        coloring.ColorClassifier("x.clip", str(tmp_path))


# --- with torch and transformers ---


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> pathlib.Path:
    for package in PACKAGES:
        pytest.importorskip(package)
    import tiny_models

    root = tmp_path_factory.mktemp("models")
    tiny_models.save_mask2former(root / "mask2former", LABELS)
    tiny_models.save_rt_detr(root / "rt_detr", LABELS)
    letters = list(string.ascii_lowercase + "-")
    tiny_models.save_clip(root / "clip", letters)
    tiny_models.save_owl(root / "owlv2", letters)
    return root


@pytest.mark.parametrize("kind", ["mask2former", "rt_detr", "owlv2"])
def test_tiny_models_of_random_weights_detect_something(models, rng, monkeypatch, kind: str):
    monkeypatch.setattr(detectors, "LEAST", -1.0)  # random weights may give scores that round to 0
    detector = detectors.load_detector("x.detector", str(models / kind), ["person", "computer mouse", "cup"])
    image = rng.integers(0, 256, (50, 80, 3), dtype=np.uint8)
    found = detector.detect(image)
    assert detector.name == kind and detector.classes == ("person", "computer mouse", "cup")
    assert found and {one.cls for one in found} <= set(detector.classes)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        assert 0 <= one.box[0] <= one.box[2] <= 80 and 0 <= one.box[1] <= one.box[3] <= 50
        assert (one.mask is not None and one.mask.shape == (50, 80)) == (kind == "mask2former")
    again = detectors.load_detector("x.detector", str(models / kind), detector.classes)
    assert again.revision == detector.revision
    assert [one.to_json() for one in again.detect(image)] == [one.to_json() for one in found]


def test_masks_of_a_quarter_of_the_size_come_back_where_they_are(models):
    import torch

    detector = detectors.load_detector("x.detector", str(models / "mask2former"))
    masks = torch.full((1, 2, 16, 24), -10.0)
    masks[0, 1, 4:8, 2:12] = 10
    classes = torch.tensor([[[-9.0, -9, -9, 9], [-9, 9, -9, -9]]])
    outputs = types.SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)

    class Model:
        device = "cpu"

        def __call__(self, **inputs):
            assert inputs["pixel_values"].shape == (1, 3, 64, 96)
            return outputs

    detector._model = (detector.load_preprocessor(), Model())
    (found,) = detector.detect(np.zeros((64, 96, 3), np.uint8))
    assert (found.cls, found.box) == ("computer mouse", (8.0, 16.0, 48.0, 32.0))
    assert 0.9 < found.score < 1


def test_colours_are_those_nearest_to_the_mean_of_the_templates(models, rng):
    import torch

    classifier = coloring.ColorClassifier("x.clip", str(models / "clip"))
    image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    things = [Detection("cup", 1, (3.5, 2, 30, 33.5)), Detection("cup", 1, (0, 0, 40, 9))]
    said = classifier(image, "cup", things)
    processor, tokenizer, model = classifier._model
    with torch.inference_mode():
        scores = []
        for color in COLORS:
            texts = [f"a photo of a {color} cup", f"a photo of a {color}-colored cup"]
            texts.append(f"a photo of a {color} object")
            each = [model.get_text_features(**tokenizer(text, return_tensors="pt")) for text in texts]
            each = [vector.pooler_output[0] / vector.pooler_output.norm() for vector in each]
            mean = sum(each) / 3
            pixels = processor(images=[coloring.crop(image, one) for one in things], return_tensors="pt")
            shown = model.get_image_features(**pixels).pooler_output
            scores.append(shown @ mean / mean.norm())
    assert said == [COLORS[index] for index in torch.stack(scores).argmax(0)]


def test_weights_that_do_not_fill_the_model_are_refused(models, tmp_path: pathlib.Path):
    import shutil

    import safetensors.torch

    folder = tmp_path / "damaged"
    shutil.copytree(models / "clip", folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights.pop("text_projection.weight")
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    image, thing = np.zeros((9, 9, 3), np.uint8), Detection("cup", 1, (0, 0, 9, 9))
    with pytest.raises(TaskError, match="no weights for 1, as text_projection.weight"):
        coloring.ColorClassifier("x.clip", str(folder))(image, "cup", [thing])
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(TaskError, match="x.clip: .*damaged"):
        coloring.ColorClassifier("x.clip", str(folder))(image, "cup", [thing])


def test_the_task_judges_with_the_models_of_its_folders(models, rng, monkeypatch, tmp_path: pathlib.Path):
    monkeypatch.setattr(detectors, "LEAST", 0.0)
    drawn = prompts.sample_prompts(["person", "cup"], each=2, tags=["colors"])
    path = files.write_metadata(tmp_path / "metadata.jsonl", drawn)
    options = {"metadata": path, "detector": models / "mask2former", "clip": models / "clip"}
    task = make_task("geneval-hf", {"threshold": "0.0"} | {name: str(one) for name, one in options.items()})
    judge = task.judge()
    assert judge.name == "mask2former+clip" and judge.protocol == "geneval-hf-0.0-0.9"
    judgement = judge(task.docs()[0], rng.integers(0, 256, (50, 80, 3), dtype=np.uint8))
    assert judgement.raw["colors"] and set(judgement.failures) <= {"wrong_color"}
    json.dumps([judgement.raw, judgement.details, judgement.constraints], allow_nan=False)
