"""Loads published models of judges from local folders with `transformers`; nothing is downloaded."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from process_gen.common.files import read_json
from process_gen.common.names import check_name
from process_gen.evaluation.options import TaskError

PACKAGES = ("torch", "transformers")
"""Packages of the extra `judges`, imported when a model is loaded."""


class ModelFolder:
    """A folder with `config.json`, a preprocessor and weights as `save_pretrained` writes them.

    Attributes:
      option: what errors call it: `geneval-hf.detector`.
      path: of the folder.
      config: what `config.json` holds.
      name: the `model_type` of `transformers`: `mask2former`, `clip`.

    Raises:
      TaskError: it lacks something, or a package is missing; says what to install or to give.
    """

    def __init__(self, option: str, folder: str):
        for package in PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise TaskError(f'{option} needs {package}: pip install -e ".[judges]"')
        if not folder:
            raise TaskError(f"{option}=FOLDER is needed: a folder of weights for transformers")
        self.option, self.path = option, pathlib.Path(folder).expanduser()
        self.weights = sorted(
            file for ending in ("*.safetensors", "pytorch_model*.bin") for file in self.path.glob(ending)
        )
        for found, what in (
            (self.path.is_dir(), "folder"),
            ((self.path / "config.json").is_file(), "config.json"),
            ((self.path / "preprocessor_config.json").is_file(), "preprocessor_config.json"),
            (self.weights, "*.safetensors"),
        ):
            if not found:
                raise TaskError(
                    f"{option}: {self.path}: no {what}; give a folder of weights for transformers"
                )
        with self.refusing():
            self.config: dict[str, Any] = read_json(self.path / "config.json")
            self.name = str(self.config.get("model_type"))

    def check_kind(self, known: Iterable[str], what: str) -> str:
        """Its `name`; raises TaskError if that is not in `known`. `what` names the kind in messages."""
        with self.refusing():
            return check_name(self.name, known, what)

    @functools.cached_property
    def revision(self) -> str:
        """Hash of configuration, preprocessor and weights: 12 hexadecimal digits."""
        digest = hashlib.sha256()
        for file in (self.path / "config.json", self.path / "preprocessor_config.json", *self.weights):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:12]

    @contextlib.contextmanager
    def refusing(self, *more: type[Exception]) -> Iterator[None]:
        """Turns errors of reading in the block, and those of types `more`, into one that names the folder."""
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError, *more) as error:
            raise TaskError(f"{self.option}: {self.path}: {' '.join(str(error).split())}") from error

    def load(self, auto: str, **options: Any) -> Any:
        """Loads from the folder with an auto class of `transformers`, such as `AutoTokenizer`."""
        import safetensors
        import transformers

        with self.refusing(safetensors.SafetensorError):
            return getattr(transformers, auto).from_pretrained(
                str(self.path), local_files_only=True, **options
            )

    def load_preprocessor(self) -> Any:
        """Loads the image preprocessor; it uses Pillow whether or not torchvision is installed."""
        return self.load("AutoImageProcessor", backend="pil")

    def load_model(self, auto: str) -> Any:
        """Loads the model in float32, without TF32, onto the first GPU or the CPU.

        Raises:
          TaskError: the folder lacks some weights of the model, which would be random.
        """
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        model, about = self.load(auto, dtype=torch.float32, output_loading_info=True)
        parameters = {name for name, _ in model.named_parameters()}
        if missing := sorted(parameters & set(about["missing_keys"])):
            raise TaskError(f"{self.option}: {self.path}: no weights for {len(missing)}, as {missing[0]}")
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
