"""Answers to benchmark questions, and the scores they get. Nothing else in the library stands on this room."""
