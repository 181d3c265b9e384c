"""Every test runs on the CPU, in float32 unless it says otherwise, with strict shapes."""

from __future__ import annotations

import importlib.metadata
import os

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
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK_COMPILES}".strip()

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

jax.config.update("jax_numpy_rank_promotion", "raise")
logging.set_verbosity(logging.WARNING)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run of a test."""
    return np.random.default_rng(0)
