"""Benchmarks (scenes, GenEval, WISE and others), judges, intervals, what the process did, results on disk."""
