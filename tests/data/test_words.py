"""Words as tokens, their vectors, and which of them a region's label holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llava_pat.analysis.vocabulary import Vocabulary
from llava_pat.data.regions import label_tokens
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.data.words import mean_vectors, words_for
from llava_pat.types import DataError, ImageRegions, PatchRegions, Region

LLM = Path(__file__).parents[1] / "assets" / "llava_written" / "llm"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(LLM)


def annotated(*labels: str) -> list[ImageRegions]:
    return [ImageRegions("1", "1.png", 4, 4, tuple(Region(label, None, (0, 0, 2, 2)) for label in labels), "r", 1)]


def test_vectors_are_means_of_the_real_tokens(tokenizer) -> None:
    table = torch.randn(len(tokenizer), 5, generator=torch.Generator().manual_seed(0))
    words = words_for(Vocabulary(("red", "a purple triangle")), annotated("red"), tokenizer)
    vectors = words.vectors(lambda ids: table[ids])
    for row, text in enumerate(("red", "a purple triangle")):
        expected = table[label_tokens(text, tokenizer, "")].mean(0)
        torch.testing.assert_close(vectors[row], expected)
    assert mean_vectors(lambda ids: table.half()[ids], words.ids, words.mask).dtype == torch.float32


def test_targets_of_a_batch_by_the_labels_tokens(tokenizer) -> None:
    words = words_for(Vocabulary(("red", "blue", "circle")), annotated("red circle", "blue"), tokenizer)
    tokens = [label_tokens(label, tokenizer, "") for label in ("blue", "red circle")]
    ids = torch.zeros(2, max(map(len, tokens)), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, found in enumerate(tokens):
        ids[row, : len(found)], mask[row, : len(found)] = torch.tensor(found), True
    regions = PatchRegions(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64), ids, mask)
    assert words.region_targets(regions).tolist() == [[False, True, False], [True, False, True]]
    none = PatchRegions(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ids[:0], mask[:0])
    assert words.region_targets(none).shape == (0, 3)


def test_a_word_without_tokens_is_named_with_its_file(tokenizer) -> None:
    with pytest.raises(DataError, match=r"words.json: label ' ' has no tokens"):
        words_for(Vocabulary(("red", " ")), annotated("red"), tokenizer, "words.json")
