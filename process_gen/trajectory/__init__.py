"""Stages, steps and trajectories; markup; static slots; the batch; who sees whom."""
