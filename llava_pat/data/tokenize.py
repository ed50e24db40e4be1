"""Conversations -> token ids and labels, in one pass: labels follow from where each token's characters stand.

LLaVA finds the answers by tokenising every round again and subtracting constants; where that miscounts, it masks the
whole sample and goes on. Here a chunk of text (between two images) is tokenised once, and the offsets say which tokens
end inside a supervised span. The ids are LLaVA's: BOS, chunks tokenised on their own, IMAGE_TOKEN_INDEX between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, LlamaTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from llava_pat.data.json_files import read_json
from llava_pat.data.sentencepiece_backend import adopt_sentencepiece
from llava_pat.data.templates import Span, Template, place_images
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN, IMAGE_TOKEN_INDEX, DataError, Turn


@dataclass(frozen=True)
class Encoded:
    """Token ids with one IMAGE_TOKEN_INDEX per image, and as many labels (IGNORE_INDEX where nothing is learned)."""

    input_ids: list[int]
    labels: list[int]


def load_tokenizer(path: str | Path, model_max_length: int = 2048) -> PreTrainedTokenizerBase:
    """LLaVA's tokenizer set-up: padding on the right, pad = unk when the tokenizer has no pad token.

    `path` is a folder or a hub id. A Llama tokenizer with a `tokenizer.model` gives sentencepiece's own ids (see
    `sentencepiece_backend`). Raises DataError when the result cannot tokenise.
    """
    try:
        tokenizer = _tokenizer(path, model_max_length)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise DataError(
                f"{path}: its tokenizer brings code of its own (auto_map), which is never run here"
            ) from error
        if str(path) in str(error):
            raise
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: its tokenizer cannot be loaded ({reason})") from error
    except Exception as error:  # of files that are none of a tokenizer, `tokenizers` raises no narrower kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path}: its tokenizer cannot be loaded ({reason})") from error
    if not tokenizer.encode("a red circle", add_special_tokens=False):
        raise DataError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens and encodes 'a red circle' to nothing; load the folder "
            "that holds its tokenizer.model or tokenizer.json (a bare vocab_file loads as an empty tokenizer)"
        )
    if tokenizer.pad_token_id is None:
        substitute = tokenizer.unk_token or tokenizer.eos_token
        if substitute is None:
            raise DataError(f"{path}: the tokenizer has neither pad, unk nor eos token to pad with; set its pad_token")
        tokenizer.pad_token = substitute
    return tokenizer


def _tokenizer(path: str | Path, model_max_length: int) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(
        path,
        config=_family_config(path),
        model_max_length=model_max_length,
        padding_side="right",
        trust_remote_code=False,
    )
    if not tokenizer.is_fast:
        raise DataError(f"{path}: {type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
    model_file = cached_file(path, "tokenizer.model", _raise_exceptions_for_missing_entries=False)
    if model_file is not None and isinstance(tokenizer, LlamaTokenizer):
        adopt_sentencepiece(tokenizer, model_file, legacy=_is_legacy(path))
    return tokenizer


def _family_config(path: str | Path) -> PretrainedConfig | None:
    """transformers picks a tokenizer by config.json's model_type, and does not know LLaVA's: it gets the family's."""
    model_type = _settings(path, "config.json").get("model_type")
    family = str(model_type).removeprefix("llava_")
    return CONFIG_MAPPING[family]() if family != model_type and family in CONFIG_MAPPING else None


def _is_legacy(path: str | Path) -> bool:
    """Without the key, transformers 4.37 (and so LLaVA) behaves as legacy; 5.x would not."""
    legacy = _settings(path, "tokenizer_config.json").get("legacy")
    return True if legacy is None else bool(legacy)


def _settings(path: str | Path, name: str) -> dict[str, Any]:
    """A JSON file of a folder or hub id; {} where there is none."""
    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    content = {} if file is None else read_json(Path(file))
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds a {type(content).__name__}, expected an object")
    return content


def encode(turns: Sequence[Turn], template: Template, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """One conversation -> ids and labels of equal length. A last human turn without answer gives an open prompt.

    Text stays text: a "</s>" that a person typed is never the special token (but see Template.text_stays_text).
    Raises DataError where the template cannot hold the conversation or the tokenizer cannot keep text as text.
    """
    return _encode_spans(template.render(place_images(turns)), template, tokenizer, llava_tail=True)


def encode_prompt(
    question: str, template: Template, tokenizer: PreTrainedTokenizerBase, history: Sequence[Turn] = ()
) -> list[int]:
    """Ids of a question and the open turn of its answer, one IMAGE_TOKEN_INDEX per `<image>`.

    history: the turns before it, the first a human's. All texts stay as they are. `encode` puts the image in front and
    strips the rest, as LLaVA's training does; LLaVA's evaluation does not strip. Errors as in `encode`.
    """
    turns = [*history, Turn("human", question)]
    return _encode_spans(template.render(turns), template, tokenizer, llava_tail=False).input_ids


def encode_words(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of `text` as it reads inside a sentence: with the space before it, no BOS. Empty if it has no tokens."""
    lead = "the"
    encoding = tokenizer.backend_tokenizer.encode(f"{lead} {text.strip()}", add_special_tokens=False)
    return [i for i, (_, end) in zip(encoding.ids, encoding.offsets, strict=True) if end > len(lead) + 1]


@dataclass(frozen=True)
class _Traits:
    """What a tokenizer does, found by asking it."""

    bos: tuple[int, ...]  # what it puts in front of a text: () or (bos,)
    trims: bool  # a trailing space gives no token
    specials: re.Pattern[str] | None  # strings that it would turn into special tokens
    cuts_freely: bool  # text on both sides of a special token encodes as it does alone
    greedy: frozenset[int]  # special tokens that take the white space behind them along (Phi-3's <|end|>)


@lru_cache(maxsize=16)
def _traits(tokenizer: PreTrainedTokenizerBase, size: int) -> _Traits:
    """`size` is part of the key: adding tokens changes the answers."""
    alone = tokenizer.encode("red circle", add_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    greedy = frozenset(number for number, token in added.items() if token.rstrip)
    names = sorted((token.content for token in added.values() if token.special), key=len, reverse=True)
    joined = [tokenizer.encode(f"red circle{name}red circle", add_special_tokens=False) for name in names[:1]]
    return _Traits(
        bos=tuple(tokenizer.encode("")),
        trims=tokenizer.encode("a: ", add_special_tokens=False) == tokenizer.encode("a:", add_special_tokens=False),
        specials=re.compile("|".join(map(re.escape, names))) if names else None,
        cuts_freely=not greedy
        and all(ids == [*alone, tokenizer.convert_tokens_to_ids(names[0]), *alone] for ids in joined),
        greedy=greedy,
    )


def _encode_spans(
    spans: Sequence[Span], template: Template, tokenizer: PreTrainedTokenizerBase, llava_tail: bool
) -> Encoded:
    traits = _traits(tokenizer, len(tokenizer))
    ids, labels = list(traits.bos), [IGNORE_INDEX] * len(traits.bos)
    for number, chunk in enumerate(_chunks(spans)):
        if number:
            ids.append(IMAGE_TOKEN_INDEX)
            labels.append(IGNORE_INDEX)
        chunk_ids, learned = _encode_chunk(chunk, template, tokenizer, traits)
        if llava_tail and traits.trims and template.lead:
            # LLaVA counts the answer's header as its tokens with a trailing space, less one: less that space. A
            # tokenizer that trims has no such token, so LLaVA learns the header's last token (":"). So do we.
            learned = [now or (i + 1 < len(learned) and learned[i + 1]) for i, now in enumerate(learned)]
        ids += chunk_ids
        labels += [i if on else IGNORE_INDEX for i, on in zip(chunk_ids, learned, strict=True)]
    return Encoded(ids, labels)


def _chunks(spans: Sequence[Span]) -> list[list[Span]]:
    """Cut the prompt at its images."""
    chunks: list[list[Span]] = [[]]
    for span in spans:
        if IMAGE_TOKEN not in span.text:
            chunks[-1].append(span)
            continue
        if span.supervised:
            raise DataError(f"an answer holds {IMAGE_TOKEN}: {span.text!r}; images belong to questions")
        for number, text in enumerate(span.text.split(IMAGE_TOKEN)):
            if number:
                chunks.append([])
            if text:
                chunks[-1].append(Span(text, span.supervised, span.control))
    return chunks


def _encode_chunk(
    chunk: list[Span], template: Template, tokenizer: PreTrainedTokenizerBase, traits: _Traits
) -> tuple[list[int], list[bool]]:
    """Ids of one chunk and, per id, whether it is learned: whether its last character is in a supervised span."""
    pieces: list[list[Span]] = [[]]  # stretches of text, and controls on their own
    for span in chunk:
        if span.control:
            pieces += [[span], []]
        else:
            pieces[-1].append(span)
    typed = _typed_special(pieces, traits) if template.text_stays_text else None
    if typed is None:
        return _tokens(chunk, tokenizer, traits, split_specials=False)
    if not traits.cuts_freely:
        raise DataError(
            f"a text holds the special token {typed!r}, which this tokenizer cannot keep apart from a real one "
            f"in template {template.name!r}; remove it from the text"
        )
    ids: list[int] = []
    learned: list[bool] = []
    for piece in pieces:
        more, on = _tokens(piece, tokenizer, traits, split_specials=not (piece and piece[0].control))
        ids += more
        learned += on
    return ids, learned


def _typed_special(pieces: list[list[Span]], traits: _Traits) -> str | None:
    """A special token's string in somebody's text, if there is one."""
    if traits.specials is None:
        return None
    for piece in pieces:
        if piece and not piece[0].control:
            found = traits.specials.search("".join(span.text for span in piece))
            if found:
                return found.group()
    return None


def _tokens(
    spans: Sequence[Span], tokenizer: PreTrainedTokenizerBase, traits: _Traits, split_specials: bool
) -> tuple[list[int], list[bool]]:
    flags = b"".join((b"\1" if span.supervised else b"\0") * len(span.text) for span in spans)  # one a character
    if not flags:
        return [], []
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = split_specials
    try:
        encoding = backend.encode("".join(span.text for span in spans), add_special_tokens=False)
    finally:
        backend.encode_special_tokens = False
    learned = [flags[max(start, end - 1)] == 1 for start, end in encoding.offsets]
    if traits.greedy:  # what such a token takes along may belong to the next span; the token itself starts it
        for place, token in enumerate(encoding.ids):
            if token in traits.greedy:
                learned[place] = flags[encoding.offsets[place][0]] == 1
    return encoding.ids, learned


def check_round_trip(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, before anything is trained, a template that does not fit the tokenizer (DataError says where).

    Checked: only a BOS is added by itself; every control string of the template is one special token, and the one that
    ends an answer is what generation stops at; text survives encoding and decoding (white space apart, which
    sentencepiece models may normalise); the labels spell exactly the answers and their ends.
    """
    pair = f"template {template.name!r} and this {type(tokenizer).__name__} of {len(tokenizer)} tokens do not fit"
    traits = _traits(tokenizer, len(tokenizer))
    if traits.bos not in ((), (tokenizer.bos_token_id,)):
        raise DataError(
            f"{pair}: it puts {list(traits.bos)} around an empty text where BOS or nothing is expected; "
            "is add_eos_token on?"
        )
    for control in template.controls:
        ids = tokenizer.encode(control, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id or ids[0] not in tokenizer.added_tokens_decoder:
            raise DataError(
                f"{pair}: {control!r} must be one special token but encodes to {len(ids)} ids {ids}; "
                f"its eos is {tokenizer.eos_token!r}, choose the template that was made for it"
            )
    if template.end_is_eos and template.end != tokenizer.eos_token:
        raise DataError(f"{pair}: answers end with {template.end!r} but the tokenizer's eos is {tokenizer.eos_token!r}")
    turns = [
        Turn("human", f"{IMAGE_TOKEN}\nWhat is left of 3 circles?"),
        Turn("gpt", "A red square, at [0.12, 0.30]."),
        Turn("human", "Is it large?"),
        Turn("gpt", "yes"),
    ][: 2 if template.caption_only else 4]
    spans = template.render(turns)
    encoded = _encode_spans(spans, template, tokenizer, llava_tail=False)
    _same_text(pair, "text", [i for i in encoded.input_ids[len(traits.bos) :] if i >= 0], tokenizer, [*spans])
    learned = [i for i in encoded.labels if i != IGNORE_INDEX]
    _same_text(pair, "answers", learned, tokenizer, [span for span in spans if span.supervised])


def _same_text(pair: str, what: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, spans: list[Span]) -> None:
    wanted = "".join("".join(span.text.replace(IMAGE_TOKEN, "") for span in spans).split())
    found = "".join(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).split())
    if found != wanted:
        raise DataError(f"{pair}: the {what} come back as {found!r} instead of {wanted!r}")
