"""Classifies the colours of detected objects with CLIP or SigLIP, with GenEval's crops and texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from process_gen.evaluation.geneval.decision import COLORS, Detection
from process_gen.evaluation.pretrained import ModelFolder

TEMPLATES = (
    "a photo of a {color} {cls}",
    "a photo of a {color}-colored {cls}",
    "a photo of a {color} object",
)
BACKGROUND = (153, 153, 153)
"""`#999`, which hides what is not the object."""

_PADDING = {"clip": True, **dict.fromkeys(("siglip", "siglip2"), "max_length")}


def crop(image: np.ndarray, detection: Detection) -> Image.Image:
    """Crops the box of a detection out of an image, [H, W, 3] uint8, and hides all but its mask, if any.

    The box is rounded half to even; what of it lies outside the image is black.
    """
    if detection.mask is not None:
        image = np.where(detection.mask[..., None], image, np.uint8(BACKGROUND))
    x0, y0, x1, y1 = (int(edge) for edge in np.rint(np.asarray(detection.box, np.float32)))
    return Image.fromarray(image).crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))


class ColorClassifier(ModelFolder):
    """CLIP or SigLIP from a folder; its weights are read when it is first used."""

    def __init__(self, option: str, folder: str):
        """Raises TaskError if the model is of no known kind, and as `ModelFolder` does."""
        super().__init__(option, folder)
        self.check_kind(_PADDING, "kind of classifier")
        self._of_class: dict[str, Any] = {}

    @functools.cached_property
    def _model(self) -> tuple[Any, Any, Any]:
        return self.load_preprocessor(), self.load("AutoTokenizer"), self.load_model("AutoModel")

    def __call__(self, image: np.ndarray, cls: str, found: Sequence[Detection]) -> list[str]:
        """The nearest of `COLORS` for each detection of one class in an image, [H, W, 3] uint8."""
        import torch

        processor, _, model = self._model
        crops = [crop(image, one) for one in found]
        inputs = processor(images=crops, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            shown = _normalized(model.get_image_features(pixel_values=inputs["pixel_values"]))
            nearest = (shown @ self._texts(cls).T).argmax(-1)
        return [COLORS[index] for index in nearest.tolist()]

    def _texts(self, cls: str) -> Any:
        """A unit vector for each colour, [colours, D]: the mean over the templates."""
        if cls not in self._of_class:
            _, tokenizer, model = self._model
            texts = [one.format(color=color, cls=cls) for color in COLORS for one in TEMPLATES]
            tokens = tokenizer(texts, padding=_PADDING[self.name], truncation=True, return_tensors="pt")
            each = _normalized(model.get_text_features(**tokens.to(model.device)))
            self._of_class[cls] = _normalized(each.unflatten(0, (len(COLORS), -1)).mean(1))
        return self._of_class[cls]


def _normalized(features: Any) -> Any:
    features = getattr(features, "pooler_output", features)
    return features / features.norm(dim=-1, keepdim=True)
