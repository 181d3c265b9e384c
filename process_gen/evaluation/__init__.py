"""The scenes benchmark, its intervals, what the process did, and results on disk."""
