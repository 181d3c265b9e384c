"""Sweeps: many settings of one command, run by any number of processes."""
