"""Helpers that every room may import: checks of names and values that users type, files, images."""
