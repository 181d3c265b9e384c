"""Saved states: what a run needs to go on, and weights that travel."""
