"""process_gen: process-driven image generation in JAX (arXiv 2604.04746)."""

__version__ = "0.1.0"
