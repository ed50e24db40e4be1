"""Measures on tensors: pure functions and small accumulators, no models, no data files but a word list."""
