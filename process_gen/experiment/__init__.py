"""Builds objects from a config and a command line, with errors that name the wrong key or flag."""
