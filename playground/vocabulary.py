"""The playground's two tokenizers, in the formats of the real thing.

- The text tower's: CLIP's byte-pair encoding (`vocab.json`, `merges.txt`), every byte covered.
- The language model's: a sentencepiece `tokenizer.model` like Llama's (byte-pair encoding, byte fallback, dummy prefix,
  whitespace kept), so that slow tokenizers load it too. A number of a box is one piece with the bracket, space and
  comma around it, so a box is four pieces: rows are short, and copying a box is four look-ups of one token.
  They are ordinary pieces whose merges come first, not `user_defined_symbols`: transformers 5 puts a space behind
  those.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from playground import text, world

TENTHS = ("0.", "1.", *(f"0.{tenth}" for tenth in range(10)), "1.0")
HUNDREDTHS = tuple(f"{hundredths / 100:.2f}" for hundredths in range(101))
NUMBER_MERGES = (
    *TENTHS,
    *HUNDREDTHS,
    *(f"{number}{end}" for end in ",]" for number in HUNDREDTHS),
    *(f"▁{number}{end}" for end in ",]" for number in HUNDREDTHS),
    *(f"▁[{number}," for number in HUNDREDTHS),
)
"""Every merge on the way to a box's four pieces, "▁[0.12,", "▁0.30,", "▁0.55,", "▁0.91]", in the order in which they
happen. "▁[" itself is learned: every box of the corpus begins with it."""
V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_PIECES = 1310
CLIP_MERGES = 240


def corpus(scenes: int = 3000, seed: int = 0) -> Iterator[str]:
    """Everything the playground says, a line each, but with boxes in hundredths: the pieces are for any box."""
    rng = np.random.default_rng([seed, 7])
    for index in range(scenes):
        scene = world.scene(seed, "train", index)
        lines = [text.caption(scene, rng)]
        lines.append(f"USER: Scene: {text.scene_as_text(scene, rng)} ASSISTANT: {text.caption(scene, rng)}")
        asked = [*text.questions(scene, rng), text.rec(scene, scene.things[0], rng), text.reg(scene, scene.things[-1])]
        asked.append(text.describe(scene, rng))
        lines += [f"USER: {qa.question} {text.SHORT_ANSWER} ASSISTANT: {qa.answer}" for qa in asked]
        for thing in scene.things:
            exact = ", ".join(f"{value:.2f}" for value in text.square_box(scene, thing.box))
            written = text.write_box(scene, thing.box)
            lines = [line.replace(written, f"[{exact}]") for line in lines]
        yield from lines
        if index % 10 == 0:
            yield V1_SYSTEM


def build_llama_tokenizer(
    folder: Path, number_merges: Sequence[str] = NUMBER_MERGES, pieces: int = LLAMA_PIECES
) -> None:
    """Writes tokenizer.model and the two JSON files that transformers 4.37 and 5 read beside it."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces - len(number_merges),
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(_with_numbers(model.getvalue(), number_merges))
    token = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {str(i): {"content": t, **token} for i, t in enumerate(("<unk>", "<s>", "</s>"))},
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "legacy": True,  # Vicuna's setting
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")


def _with_numbers(model: bytes, number_merges: Sequence[str]) -> bytes:
    """Adds the merges with scores above every trained merge, and ids below: sentencepiece merges the best score first,
    the tokenizer that transformers 5 makes of the file the lowest id."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    present = {piece.piece for piece in proto.pieces}
    trained = next(index for index, piece in enumerate(proto.pieces) if piece.type == piece.NORMAL)
    learned = list(proto.pieces[trained:])
    del proto.pieces[trained:]
    for rank, number in enumerate(number_merges):
        if number in present:
            raise ValueError(f"sentencepiece learned {number!r} itself; its score would be wrong")
        proto.pieces.add(piece=number, score=float(len(number_merges) - rank))
    proto.pieces.extend(learned)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def build_clip_tokenizer(folder: Path) -> None:
    """Writes CLIP's vocab.json and merges.txt (byte alphabet, then the merges, then the two special tokens)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=CLIP_MERGES + 80, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator((line for line in corpus(1000) if not line.startswith("USER")), trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [byte + "</w>" for byte in alphabet] + ["".join(pair) for pair in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    config = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "do_lower_case": True,
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
