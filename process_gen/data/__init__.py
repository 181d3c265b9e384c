"""Data: sources of trajectories, tokenizers, and the loader that packs rows."""
