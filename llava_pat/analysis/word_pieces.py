"""Which pieces of a tokenizer are words: the vocabulary that patches are read with when there is no word list.

A language model's vocabulary holds control pieces, raw bytes, inner parts of words, digits and punctuation. To name
them as "the nearest word" says nothing, and they take places in a ranking. So they are dropped, and how many for which
reason is reported beside every number that depends on it. The choice is this project's:

    control          <s>, <unk>, <|im_start|>, [INST], [PAD] and whatever else the caller names as special
    byte             <0x0A> of SentencePiece; a byte-level piece that is no whole UTF-8 text
    partial          does not begin a word: no leading U+2581 (SentencePiece) or U+0120 (byte-level BPE). Also lets
                     go of scripts written without spaces, whose words have no such mark: `partial=True` keeps them
    not alphabetic   anything but letters, with single hyphens or apostrophes between letters
    single letter    one letter of ASCII, but for "a" and "i", which are words
    case duplicate   the same word in another case, the lower-case piece (else the first) being kept: "Dog", "DOG"
                     beside "dog". They have other vectors, and the top five of a patch would be one word five times;
                     `case_duplicates=True` keeps them

A piece is counted under the first reason that fits. What this cannot see: a piece that begins a word and is none by
itself ("pur" of "purple") passes, since nothing in a vocabulary tells it from a short word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SENTENCEPIECE_SPACE = "\u2581"
BYTE_LEVEL_SPACE = "\u0120"
REASONS = ("control", "byte", "partial", "not alphabetic", "single letter", "case duplicate")

_CONTROL = re.compile(r"<[^<>\s]+>|\[[A-Z/_\d]+\]")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")


@dataclass(frozen=True)
class WordPieces:
    """Result of `find_word_pieces`."""

    keep: Tensor  # [V] bool: the piece is a word
    words: tuple[str, ...]  # V texts without the space mark; "" for bytes that are no text
    dropped: dict[str, int]  # how many pieces for each of REASONS, all of them listed
    same_word: dict[int, int]  # a case duplicate -> the piece that is kept in its place


def find_word_pieces(
    pieces: Sequence[str],
    special: Iterable[int] = (),
    partial: bool = False,
    case_duplicates: bool = False,
) -> WordPieces:
    """Mark the pieces that are whole words.

    Args:
        pieces: V pieces in the order of their ids, as `tokenizer.convert_ids_to_tokens(range(V))` gives them.
            SentencePiece and byte-level BPE are told apart by which space mark more pieces begin with.
        special: ids of further control pieces (`tokenizer.all_special_ids`).
        partial: pieces that do not begin a word count as well.
        case_duplicates: "Dog" counts beside "dog".

    Raises:
        ValueError: no piece begins with either mark (no vocabulary of these two kinds), or a special id out of range.
    """
    control = set(special)
    outside = sorted(number for number in control if not 0 <= number < len(pieces))
    if outside:
        raise ValueError(f"special id {outside[0]} is outside the vocabulary of {len(pieces)} pieces")
    byte_level = _is_byte_level(pieces)
    keep = torch.zeros(len(pieces), dtype=torch.bool)
    words: list[str] = []
    dropped = dict.fromkeys(REASONS, 0)
    for number, piece in enumerate(pieces):
        text, begins = _text(piece, byte_level)
        words.append("" if text is None else text)
        reason = "control" if number in control else _reason(piece, text, begins or partial)
        if reason:
            dropped[reason] += 1
        else:
            keep[number] = True
    same_word = {} if case_duplicates else _case_duplicates(words, keep)
    keep[list(same_word)] = False
    dropped["case duplicate"] = len(same_word)
    return WordPieces(keep, tuple(words), dropped, same_word)


def _is_byte_level(pieces: Sequence[str]) -> bool:
    sentencepiece, byte_level = (
        sum(piece.startswith(mark) for piece in pieces) for mark in (SENTENCEPIECE_SPACE, BYTE_LEVEL_SPACE)
    )
    if not sentencepiece and not byte_level:
        raise ValueError(
            f"none of {len(pieces)} pieces begins with {SENTENCEPIECE_SPACE} (SentencePiece) or {BYTE_LEVEL_SPACE} "
            "(byte-level BPE), so words cannot be told from parts of words; give a word list instead"
        )
    return byte_level > sentencepiece


def _text(piece: str, byte_level: bool) -> tuple[str | None, bool]:
    """The piece as text without its space mark (None: no text), and whether it begins a word."""
    if not byte_level:
        return piece.removeprefix(SENTENCEPIECE_SPACE), piece.startswith(SENTENCEPIECE_SPACE)
    if any(letter not in _BYTE_OF for letter in piece):
        return piece, False  # an added piece: stands for itself
    try:
        text = bytes(_BYTE_OF[letter] for letter in piece).decode("utf-8")
    except UnicodeDecodeError:
        return None, False
    return text.removeprefix(" "), text.startswith(" ")


def _reason(piece: str, text: str | None, begins: bool) -> str | None:
    if text is None or _BYTE.fullmatch(piece):
        return "byte"
    if _CONTROL.fullmatch(piece):
        return "control"
    if not begins:
        return "partial"
    if not _WORD.fullmatch(text):
        return "not alphabetic"
    return "single letter" if len(text) == 1 and text.isascii() and text.lower() not in "ai" else None


def _case_duplicates(words: Sequence[str], keep: Tensor) -> dict[int, int]:
    best: dict[str, int] = {}
    kept = keep.nonzero().squeeze(-1).tolist()
    for number in kept:
        folded = words[number].casefold()
        if folded not in best or (words[number] == words[number].lower() != words[best[folded]]):
            best[folded] = number
    chosen = {number: best[words[number].casefold()] for number in kept}
    return {number: stays for number, stays in chosen.items() if stays != number}


def _byte_letters() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: itself where printable, else the next letter from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
