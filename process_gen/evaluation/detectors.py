"""Object detectors with published weights: an image in, detections out.

Outputs of a model are decoded here, not by the post-processing of `transformers`, so
that scores mean what GenEval's thresholds were set for: of Mask2Former, the
probability of the class times the mean probability of the mask inside it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from scipy import special

from process_gen.evaluation.geneval.decision import Detection
from process_gen.evaluation.pretrained import ModelFolder

MOST = 100
"""Most pairs of a query and a class that are taken from an image."""

LEAST = 0.05
"""Pairs with a probability of at most this are left out; it is far below any threshold."""

_GENEVAL_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    **{"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv"},
    **{"pottedplant": "potted plant", "diningtable": "dining table"},
}
"""GenEval's name of a class, where a model has another one."""


class Detector(ModelFolder):
    """Finds objects; its weights are read when it is first used. `classes` are what it can find."""

    auto: ClassVar[str]

    def __init__(self, option: str, folder: str, classes: Sequence[str] = ()):
        """`classes` are what to look for; only detectors that take them as text use them."""
        super().__init__(option, folder)
        self.classes = tuple(class_names(self.config.get("id2label", {})))

    @functools.cached_property
    def _model(self) -> tuple[Any, Any]:
        return self.load_preprocessor(), self.load_model(self.auto)

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Detects objects in an image, [H, W, 3] uint8; the highest score first."""
        import torch

        processor, model = self._model
        inputs = processor(images=Image.fromarray(image), return_tensors="pt").to(model.device)
        with torch.inference_mode():
            return self._detections(model, inputs, image.shape[:2])

    def _detections(self, model: Any, inputs: Any, size: tuple[int, int]) -> list[Detection]:
        raise NotImplementedError


class MaskDetector(Detector):
    """Mask2Former: a class and a mask for each query.

    The image is resized as the folder's preprocessor says. Those of `transformers` round both
    sides to whole multiples of 32, where the official detector keeps the aspect and pads.
    """

    auto = "AutoModelForUniversalSegmentation"

    def _detections(self, model: Any, inputs: Any, size: tuple[int, int]) -> list[Detection]:
        outputs = model(**inputs)
        pairs = best_pairs(special.softmax(outputs.class_queries_logits[0].cpu().numpy(), axis=-1)[:, :-1])
        logits = outputs.masks_queries_logits[0, [query for query, _, _ in pairs]]
        shown = inputs["pixel_mask"][0].bool()
        height, width = int(shown.any(1).sum()), int(shown.any(0).sum())
        logits = _resized(_resized(logits, shown.shape)[:, :height, :width], size)
        return instances(pairs, (one.cpu().numpy() for one in logits), self.classes)


class BoxDetector(Detector):
    """RT-DETR and its like: for each query a box and a probability of each class by itself (sigmoid)."""

    auto = "AutoModelForObjectDetection"

    def _detections(self, model: Any, inputs: Any, size: tuple[int, int]) -> list[Detection]:
        outputs = model(pixel_values=inputs["pixel_values"])
        logits, places = outputs.logits[0].cpu().numpy(), outputs.pred_boxes[0].cpu().numpy()
        return boxes(logits, places, self.classes, size)


class TextDetector(Detector):
    """OWL-ViT and OWLv2: boxes for classes given as text."""

    auto = "AutoModelForZeroShotObjectDetection"

    def __init__(self, option: str, folder: str, classes: Sequence[str] = ()):
        super().__init__(option, folder)
        self.classes = tuple(classes)

    @functools.cached_property
    def _tokens(self) -> Any:
        """Tokens of a text for each class."""
        _, model = self._model
        texts = [f"a photo of a {name}" for name in self.classes]
        length = model.config.text_config.max_position_embeddings
        fixed = {"padding": "max_length", "max_length": length, "truncation": True}
        tokens = self.load("AutoTokenizer")(texts, return_tensors="pt", **fixed)
        return tokens.to(model.device)

    def _detections(self, model: Any, inputs: Any, size: tuple[int, int]) -> list[Detection]:
        outputs = model(**self._tokens, **inputs)
        logits, places = outputs.logits[0].cpu().numpy(), outputs.pred_boxes[0].cpu().numpy()
        if self.name == "owlv2":  # its boxes are shares of a square that has the image in its top left corner
            width_height = np.array(size[::-1], np.float32)
            places = places * np.tile(width_height.max() / width_height, 2)
        return boxes(logits, places, self.classes, size)


def load_detector(option: str, folder: str, classes: Sequence[str] = ()) -> Detector:
    """The detector in a folder.

    Args:
      option: what errors call the folder.
      folder: of Mask2Former, of a detector with a score per class (RT-DETR), or of OWL.
      classes: what to look for; only OWL uses them.

    Raises:
      TaskError: a package or the folder is missing, or the model is of no known kind.
    """
    kind = ModelFolder(option, folder).check_kind(_KINDS, "kind of detector")
    return _KINDS[kind](option, folder, classes)


_KINDS: dict[str, type[Detector]] = {
    "mask2former": MaskDetector,
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deformable_detr"), BoxDetector),
    **dict.fromkeys(("owlvit", "owlv2"), TextDetector),
}


def class_names(id2label: dict[str, str]) -> list[str]:
    """The labels of a model's configuration in order, as GenEval calls them."""
    labels = [id2label[index] for index in sorted(id2label, key=int)]
    return [_GENEVAL_NAMES.get(label, label) for label in labels]


Pair = tuple[int, int, float]  # query, class, probability


def best_pairs(probabilities: np.ndarray) -> list[Pair]:
    """The best `MOST` pairs of a query and a class above `LEAST`, the best first.

    Args:
      probabilities: [queries, classes]; one query may come with several classes.
    """
    flat = probabilities.ravel()
    order = np.argsort(-flat, kind="stable")[:MOST]
    return [
        (*map(int, divmod(index, probabilities.shape[1])), float(flat[index]))
        for index in order
        if flat[index] > LEAST
    ]


def instances(
    pairs: Iterable[Pair], mask_logits: Iterable[np.ndarray], classes: Sequence[str]
) -> list[Detection]:
    """Detections with masks: where logits, [H, W] of the image for each pair, are above 0.

    The score is the probability of the class times the mean probability of the mask
    inside it; the box is the mask's. Empty masks are left out: they score 0.
    """
    found = []
    for (_, cls, probability), logits in zip(pairs, mask_logits, strict=True):
        mask = logits > 0
        if mask.any():
            area = np.float32(mask.sum()) + np.float32(1e-6)
            inside = special.expit(logits[mask]).sum(dtype=np.float32) / area
            box = tuple(map(float, Image.fromarray(mask).getbbox()))
            found.append(Detection(classes[cls], float(np.float32(probability) * inside), box, mask=mask))
    return sorted(found, key=lambda one: -one.score)


def boxes(
    logits: np.ndarray, places: np.ndarray, classes: Sequence[str], size: tuple[int, int]
) -> list[Detection]:
    """Detections without masks.

    Args:
      logits: [queries, classes]; their sigmoid is the score.
      places: centre x and y, width and height as shares of the image, [queries, 4].
      size: (height, width) of the image, which boxes are cut to.
    """
    scale = np.array([size[1], size[0]], np.float32)
    centre, half = places[:, :2], places[:, 2:] / 2
    low, high = ((edge * scale).clip(0, scale) for edge in (centre - half, centre + half))
    found = []
    for query, cls, score in best_pairs(special.expit(logits)):
        (x0, y0), (x1, y1) = low[query].tolist(), high[query].tolist()
        found.append(Detection(classes[cls], score, (x0, y0, x1, y1)))
    return sorted(found, key=lambda one: -one.score)


def _resized(logits: Any, size: tuple[int, int]) -> Any:
    """Logits, a tensor [N, h, w], on a grid of another size."""
    import torch

    if not len(logits):
        return logits.new_zeros((0, *size))
    return torch.nn.functional.interpolate(
        logits[None], size=tuple(size), mode="bilinear", align_corners=False
    )[0]
