"""The rebuilt backend against sentencepiece, on random text made of what is known to differ."""

from __future__ import annotations

import random
import shutil

import pytest
import sentencepiece
from transformers import LlamaTokenizer

from llava_pat.data.tokenize import load_tokenizer
from llava_pat.types import DataError

PARTS = [
    *["a", "red", "circle", "the", "USER:", "0.55", "12,000", "[", "</", "s>", "xxxxx"],
    *[" ", "  ", "   ", " " * 20, "\n", "\t", "\u00a0", "\u200b", "\u2581"],
    *["\u65e5\u672c", "\u00e9", "e\u0301", "\U0001f642", "\ufb01", "\u00bd", "\u2163", "\u2014", "\ud55c\uad6d\uc5b4"],
]


def texts(count):
    generator = random.Random(0)
    for _ in range(count):
        text = "".join(generator.choice(PARTS) for _ in range(generator.randint(1, 9)))
        if "</s>" not in text:  # a special token, not text
            yield text


@pytest.mark.parametrize("kind", ["small", "large", "modern"])
def test_equals_sentencepiece(kind, assets, large_folder, request):
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    folder = assets / "llm" if kind == "small" else large_folder
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in texts(1500):
        if kind == "modern" and text.startswith((" ", "\u2581")):
            continue
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text), repr(text)


def test_a_missing_legacy_key_means_legacy(tmp_path, large_folder, large_tokenizer):
    shutil.copy(large_folder / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}')
    text = "A1</s>USER: Q2"
    assert load_tokenizer(tmp_path).encode(text) == large_tokenizer.encode(text)
    assert "\u2581US" in large_tokenizer.tokenize(text), "the dummy prefix is there"


def test_it_is_needed(large_folder):
    """When transformers reads the scores again, this file can go: the test says so."""
    plain = LlamaTokenizer.from_pretrained(large_folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(large_folder / "tokenizer.model"))
    assert plain.encode("a  b", add_special_tokens=False) != reference.encode("a  b")


def test_a_model_that_cannot_be_reproduced_is_refused(tmp_path, assets):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle at 0.12 and a blue square at 0.30"] * 9),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["0.12"],
        minloglevel=2,
    )
    shutil.copy(assets / "llm" / "tokenizer_config.json", tmp_path)
    with pytest.raises(DataError, match="gives other ids than sentencepiece"):
        load_tokenizer(tmp_path)
