"""The playground's tokenizers: the committed files, read by llava_pat, transformers and sentencepiece alike."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import AutoTokenizer

from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import check_round_trip, encode_words, load_tokenizer
from playground import text, vocabulary, world

MODELS = Path(__file__).parents[2] / "playground" / "models"
UNUSUAL = ["日本語 🙂", "é e\u0301 ﬁ ½", "tab\there\n\nlines", "   spaces  ", "\u00a0\u200b"]
UNUSUAL += ["x" * 40, "1234567.89", "<s", ""]


@pytest.fixture(scope="module")
def llama():
    return load_tokenizer(MODELS / "llama")


@pytest.fixture(scope="module")
def pieces():
    return SentencePieceProcessor(model_file=str(MODELS / "llama" / "tokenizer.model"))


@pytest.fixture(scope="module")
def clip():
    return AutoTokenizer.from_pretrained(MODELS / "clip")


@pytest.fixture(scope="module")
def said(scenes):
    """Lines that the tokenizers were not trained on: another split, another seed."""
    rng = np.random.default_rng(8)
    found = []
    for scene in scenes[:100]:
        found += [text.caption(scene, rng), text.scene_as_text(scene, rng)]
        found += [f"{qa.question} {qa.answer}" for qa in text.questions(scene, rng)]
        found += [text.reg(scene, scene.things[0]).question, text.rec(scene, scene.things[-1], rng).question]
    return found


def test_llama_gives_sentencepieces_ids(llama, pieces, said):
    for line in [*said, *UNUSUAL]:
        assert llama.encode(line, add_special_tokens=False) == pieces.encode(line), repr(line)


def test_llama_equals_a_slow_tokenizer_on_conversations(llama, pieces, said):
    """What transformers 4.37's slow tokenizer does: the stretches between special tokens one by one, BOS in front."""
    for first, second in zip(said[::2], said[1::2], strict=False):
        line = f"{vocabulary.V1_SYSTEM} USER: {first} ASSISTANT: {second}</s>USER: {second} ASSISTANT: {first}</s>"
        slow = [1]
        for part in re.split("(</s>)", line):
            slow += [2] if part == "</s>" else pieces.encode(part) if part else []
        assert llama.encode(line) == slow


def test_llama_as_others_load_it(llama, said):
    """Plain AutoTokenizer (the base model's training used it) agrees with llava_pat's own on everything said here."""
    plain = AutoTokenizer.from_pretrained(MODELS / "llama")
    for line in said:
        assert plain.encode(line) == llama.encode(line), line


@pytest.mark.parametrize("word", [*world.KINDS, *world.COLOURS])
def test_kinds_and_colours_are_one_token_each(llama, clip, word):
    assert len(encode_words(word, llama)) == 1, "in running text"
    assert len(llama.encode(word, add_special_tokens=False)) == 1, "as an answer"
    assert len(clip.encode(word, add_special_tokens=False)) == 1


def test_words_have_tokens_of_their_own(llama, clip):
    words = [*world.KINDS, *world.COLOURS]
    for tokenizer in (llama, clip):
        assert len({tokenizer.encode(word, add_special_tokens=False)[0] for word in words}) == len(words)


def test_every_box_is_four_pieces(llama, pieces):
    """A number with the bracket, space and comma around it, wherever in a box the number stands."""
    for hundredths in range(101):
        number = f"{hundredths / 100:.2f}"
        box = f"[{number}, {number}, 0.35, {number}]"
        wanted = [f"▁[{number},", f"▁{number},", "▁0.35,", f"▁{number}]"]
        assert pieces.encode(box, out_type=str) == llama.tokenize(box) == wanted
        listed = f"red three {box}; blue star {box}."
        assert llama.tokenize(listed) == ["▁red", "▁three", *wanted, ";", "▁blue", "▁star", *wanted, "."]


def test_a_longer_number_is_not_swallowed(llama):
    for number in ("0.123", "10.50", "3.14", "2.00"):
        ids = llama.encode(number, add_special_tokens=False)
        assert llama.decode(ids) == number


def test_numbers_are_ordinary_pieces():
    """transformers 5 puts a space behind user-defined symbols, so there must be none."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((MODELS / "llama" / "tokenizer.model").read_bytes())
    user_defined = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
    assert user_defined == []
    assert len(proto.pieces) == proto.trainer_spec.vocab_size == vocabulary.LLAMA_PIECES
    assert len({piece.piece for piece in proto.pieces}) == len(proto.pieces)


@pytest.mark.parametrize("line", [line for line in UNUSUAL if line])
def test_llama_brings_any_text_back(llama, line):
    ids = llama.encode(line, add_special_tokens=False)
    assert llama.unk_token_id not in ids
    assert llama.decode(ids) == line


def test_llama_brings_what_is_said_back(llama, said):
    assert [llama.decode(llama.encode(line, add_special_tokens=False)) for line in said] == said


def test_llamas_special_tokens(llama):
    assert (llama.unk_token_id, llama.bos_token_id, llama.eos_token_id, llama.pad_token_id) == (0, 1, 2, 0)
    assert llama.encode("red")[0] == 1 and llama.encode("red")[-1] != 2
    assert llama.padding_side == "right" and len(llama) == vocabulary.LLAMA_PIECES


@pytest.mark.parametrize("template", ["plain", "v1"])
def test_llama_fits_llavas_templates(llama, template):
    check_round_trip(get_template(template), llama)


def test_clip_covers_every_byte(clip):
    vocab = clip.get_vocab()
    unknown = clip.eos_token_id  # CLIP has no token of its own for it
    for line in UNUSUAL:
        assert unknown not in clip.encode(line, add_special_tokens=False), repr(line)
    for byte in range(256):
        # UTF-8 does not hold every byte, so each is looked up in the byte alphabet: printable ones stand for themselves
        shown = chr(byte) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174 else None
        assert shown is None or {shown, shown + "</w>"} <= vocab.keys(), byte
    alone = [token for token in vocab if len(token) == 1]
    assert len(alone) == 256 and all(token + "</w>" in vocab for token in alone)


def test_clip_ids_are_dense_and_ends_come_last(clip):
    vocab = clip.get_vocab()
    assert sorted(vocab.values()) == [*range(len(clip))]
    assert (clip.bos_token_id, clip.eos_token_id) == (len(clip) - 2, len(clip) - 1), "CLIP pools at the greatest id"
    assert clip.encode("a red three")[0] == clip.bos_token_id and clip.encode("a red three")[-1] == clip.eos_token_id


def test_clip_reads_captions_whole(clip, scenes):
    rng = np.random.default_rng(9)
    captions = [text.caption(scene, rng) for scene in scenes]
    assert max(len(clip.encode(caption)) for caption in captions) <= clip.model_max_length
    for caption in captions:
        spoken = clip.decode(clip.encode(caption), skip_special_tokens=True)
        assert re.sub(r"\s", "", spoken) == re.sub(r"\s", "", caption)


@pytest.mark.parametrize("name", ["clip", "llama"])
def test_the_committed_files_are_what_the_builder_writes(name, tmp_path):
    build = {"clip": vocabulary.build_clip_tokenizer, "llama": vocabulary.build_llama_tokenizer}[name]
    build(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert len(written) == 3
    different = [n for n in written if (tmp_path / n).read_bytes() != (MODELS / name / n).read_bytes()]
    assert not different, f"{different}: the base models were trained with the committed ones"


def test_a_number_that_was_learned_already_is_refused():
    model = (MODELS / "llama" / "tokenizer.model").read_bytes()
    with pytest.raises(ValueError, match=r"learned '0\.'"):
        vocabulary._with_numbers(model, vocabulary.NUMBER_MERGES)
