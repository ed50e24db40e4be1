"""A tokenizer for the labels: 520 pieces with byte fallback, so it has tokens for any text."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_pat.data.tokenize import load_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(Path(__file__).parents[1] / "assets" / "llava_written" / "llm")
