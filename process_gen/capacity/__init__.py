"""Predicts memory, communication and step time of a program on hardware that need not be present."""
