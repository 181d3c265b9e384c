"""Stages, steps and trajectories; markup; static slots; the batch; attention masks."""
