"""How sets of trajectories lie on disk: listings with image files, Parquet, tar shards."""
