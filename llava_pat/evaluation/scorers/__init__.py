"""Strings (and boxes) to numbers, as the original scorers do it; pure functions."""
