"""Makes transformers' fast LlamaTokenizer give the ids of sentencepiece, which is what LLaVA trains and answers with.

transformers 5 reads a `tokenizer.model` but drops half of what it says (measured on 5.23): the merges lose the piece
scores (Llama's "a  b" comes out differently), the normaliser and the trimming of spaces are lost, and a text that
starts with a space gets no dummy prefix. LLaVA's slow tokenizer ran sentencepiece itself. Here the backend is set up
anew from the model file, and then compared with sentencepiece: a tokenizer that differs is refused.

Source of the algorithm: sentencepiece's own definition of BPE (merge the adjacent pair whose joined piece has the
highest score, leftmost first) and of its normaliser (character map, trimming, dummy prefix, escaping, in that order).
"""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Regex, normalizers
from tokenizers.models import BPE
from transformers import LlamaTokenizer

from llava_pat.types import DataError

_SPACE = "\u2581"
_BPE = 2  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _USER_DEFINED = 1, 2, 4  # SentencePiece.Type

PROBES = (
    "a red circle above the blue square.",
    " leading, trailing ",
    "two  spaces   and    more",
    "tab\tline\nbreaks\n\n",
    "na\u00efve caf\u00e9 \u2014 don\u2019t \u65e5\u672c \U0001f642 \ufb01 \u00bd",
    "[0.12, 0.30, 0.55, 0.91] 1,000 x=y & ###",
    "\nWhat is this? ASSISTANT:",
)
"""Texts that tell the known differences apart; every one must encode as sentencepiece encodes it."""


def adopt_sentencepiece(tokenizer: LlamaTokenizer, model_file: str | Path, legacy: bool) -> None:
    """Rebuild `tokenizer`'s backend from a sentencepiece BPE `tokenizer.model`, in place; added tokens stay.

    `legacy` is tokenizer_config.json's key: whether the text behind a special token has a dummy prefix too.
    Raises DataError when the model is not BPE, or when the result still differs from sentencepiece.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(Path(model_file).read_bytes())
    if proto.trainer_spec.model_type != _BPE:
        raise DataError(f"{model_file}: is of type {proto.trainer_spec.model_type}, not BPE ({_BPE}) as Llama's are")
    tokenizer.legacy = legacy
    backend = tokenizer.backend_tokenizer
    backend.model = _bpe(proto)
    # Slow `legacy` tokenizers put the dummy prefix before every stretch between special tokens; with legacy=False
    # only the start of a text has it, which only the pre-tokenizer that transformers set up can express.
    prefix_everywhere = legacy and proto.normalizer_spec.add_dummy_prefix
    steps = _normalizer_steps(proto.normalizer_spec, prefix_everywhere)
    backend.normalizer = normalizers.Sequence(steps)
    if prefix_everywhere:
        backend.pre_tokenizer = None
    _compare(tokenizer, model_file, [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED])


def _bpe(proto: sentencepiece_model_pb2.ModelProto) -> BPE:
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    merges = []
    for piece in proto.pieces:
        if piece.type not in (_NORMAL, _USER_DEFINED):
            continue  # control and byte pieces are never matched from text
        for cut in range(1, len(piece.piece)):
            left, right = piece.piece[:cut], piece.piece[cut:]
            if left in vocab and right in vocab:
                # equal scores (runs of spaces) go leftmost first, which longest-left-first amounts to
                merges.append((-piece.score, -len(left), -len(right), left, right))
    merges.sort(key=lambda merge: merge[:3])
    unknown = next(piece.piece for piece in proto.pieces if piece.type == _UNKNOWN)
    return BPE(
        vocab=vocab,
        merges=[(left, right) for *_, left, right in merges],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _normalizer_steps(spec: sentencepiece_model_pb2.NormalizerSpec, prefix: bool) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(left=True, right=True)]
    if prefix:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    return steps


def _compare(tokenizer: LlamaTokenizer, model_file: str | Path, user_defined: list[str]) -> None:
    reference = SentencePieceProcessor(model_file=str(model_file))
    # legacy=False never gives a text with a leading space its own prefix; LLaVA's prompts hold no such text
    probes = [text for text in PROBES if tokenizer.legacy or not text.startswith(" ")]
    for text in [*probes, *(f"red {piece}red" for piece in user_defined)]:
        ours, theirs = tokenizer.encode(text, add_special_tokens=False), reference.encode(text)
        if ours != theirs:
            raise DataError(
                f"{model_file}: transformers' tokenizer gives other ids than sentencepiece for {text!r}: "
                f"{len(ours)} ids {ours} against {len(theirs)} ids {theirs}; "
                "a model with user-defined symbols cannot be reproduced, train it without them"
            )
