"""Words among the pieces of both kinds of tokenizer, each reason by hand."""

from __future__ import annotations

import pytest

from llava_pat.analysis.word_pieces import REASONS, find_word_pieces


def kept(result) -> list[str]:
    return [result.words[number] for number in result.keep.nonzero().squeeze(-1).tolist()]


def test_sentencepiece():
    pieces = ["<unk>", "<s>", "[INST]", "<0x0A>", "▁Dog", "▁dog", "▁DOG", "og", "▁a", "▁I", "▁b", "▁12", "▁", "▁▁",
              "▁T-shirt", "▁don't", "▁-", "▁Straße", "▁犬", "▁cat2", "▁x_y", "▁Paris", "▁paRis"]  # fmt: skip
    result = find_word_pieces(pieces)
    assert kept(result) == ["dog", "a", "I", "T-shirt", "don't", "Straße", "犬", "Paris"]
    assert result.dropped == {
        "control": 3, "byte": 1, "partial": 1, "not alphabetic": 6, "single letter": 1, "case duplicate": 3
    }  # fmt: skip
    assert int(result.keep.sum()) + sum(result.dropped.values()) == len(pieces)
    assert {pieces[number]: pieces[kept] for number, kept in result.same_word.items()} == {
        "▁Dog": "▁dog", "▁DOG": "▁dog", "▁paRis": "▁Paris"
    }  # fmt: skip


def test_byte_level():
    pieces = ["<|endoftext|>", "Ġdog", "dog", "ĠcafÃ©", "Ã", "Ġ\u0120", "Ġæ", "!", "Ġ123", "Ġhello", "Ġ<mask>"]
    result = find_word_pieces(pieces)
    assert kept(result) == ["dog", "café", "hello"]
    assert result.words[4] == "" and list(result.dropped) == list(REASONS)
    assert result.dropped["byte"] == 2 and result.dropped["control"] == 1 and result.dropped["partial"] == 2


def test_byte_table_is_gpt2s():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from llava_pat.analysis.word_pieces import _BYTE_OF

    assert {byte: letter for letter, byte in _BYTE_OF.items()} == bytes_to_unicode()


def test_switches():
    pieces = ["▁Dog", "▁dog", "og", "user", "▁cat"]
    assert kept(find_word_pieces(pieces, case_duplicates=True)) == ["Dog", "dog", "cat"]
    assert kept(find_word_pieces(pieces, partial=True)) == ["dog", "og", "user", "cat"]
    result = find_word_pieces(pieces, special=[4])
    assert kept(result) == ["dog"] and result.dropped["control"] == 1


def test_errors():
    with pytest.raises(ValueError, match="none of 2 pieces begins with"):
        find_word_pieces(["dog", "##gy"])
    with pytest.raises(ValueError, match="special id 7 is outside the vocabulary of 1 pieces"):
        find_word_pieces(["▁dog"], special=[7])
