"""Hugging Face parts: tower, projector, language model, and their files. Never data or losses of alignment."""
