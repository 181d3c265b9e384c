"""process_gen: process-driven image generation in JAX (arXiv 2604.04746)."""

import os

__version__ = "0.1.0"

# Read by etils when the first path is used: gs:// is opened with gcsfs (process_gen/common/buckets.py), and
# no command imports TensorFlow for it.
os.environ.setdefault("EPATH_USE_TF", "false")
# Read by gcsfs: its support of hierarchical buckets asks Google for the kind of bucket before each operation.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
