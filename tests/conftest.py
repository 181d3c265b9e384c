"""Every test runs on the CPU, in float32 unless it says otherwise, with strict shapes."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

# Read when JAX and TensorFlow start, so set before either is imported; child processes inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("NO_GCE_CHECK", "true")  # nobody asks a cloud for credentials
# Tests compile much and compute little.
_QUICK_COMPILES = "--xla_backend_optimization_level=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end where they do not know a flag
    _QUICK_COMPILES = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
if _QUICK_COMPILES not in os.environ.get("XLA_FLAGS", ""):  # as a worker has inherited them
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK_COMPILES}".strip()
# A program is compiled once in a run of the tests, whichever test, worker or child process asks for it first.
_COMPILED = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jaxtyping  # noqa: E402

# Shapes in annotations are checked here, and only here: users pay nothing for them.
jaxtyping.install_import_hook(
    [f"process_gen.{name}" for name in ("models.flow", "models.layers", "models.positions", "sampling.flow")],
    "beartype.beartype",
)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import logging  # noqa: E402

from tests.fake_gcs import FakeGcs  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
logging.set_verbosity(logging.WARNING)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays: no collection goes through it again


def pytest_unconfigure() -> None:
    if _COMPILED:  # by the process that made it, which ends last
        shutil.rmtree(_COMPILED, ignore_errors=True)


@pytest.fixture(scope="session")
def gcs() -> Iterator[FakeGcs]:
    """What gs:// leads to; one for all tests of a process, because libraries read its address once."""
    with FakeGcs() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def own_config(tmp_path) -> Callable[[str], pathlib.Path]:
    """Writes a config file: `scenes.py:debug` with one line of changes to `config`."""

    def write(change: str) -> pathlib.Path:
        path = tmp_path / "own_config.py"
        path.write_text(
            "from process_gen.experiment import cli\n"
            "def get_config():\n"
            '    config = cli.load_config("configs/scenes.py:debug")\n'
            f"    with config.unlocked(): {change}\n"
            "    return config\n"
        )
        return path

    return write


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run of a test."""
    return np.random.default_rng(0)
