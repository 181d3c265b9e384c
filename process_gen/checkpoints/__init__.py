"""Checkpoints: states to resume a run from, exported weights, and published files."""
