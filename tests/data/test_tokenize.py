"""Ids and labels: against LLaVA's own (golden.json), and against sentencepiece with LLaVA's rule written out here."""

from __future__ import annotations

import pickle
import re

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import LlamaTokenizer

from llava_pat.data.records import parse_record
from llava_pat.data.templates import TEMPLATES, get_template, place_images, render_prompt
from llava_pat.data.tokenize import check_round_trip, encode, encode_prompt, encode_words, load_tokenizer
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX, DataError, Turn

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}


class SlowLlama:
    """What 4.37's slow LlamaTokenizer does, from sentencepiece: the text between special tokens, piece by piece."""

    def __init__(self, folder, legacy):
        self.pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.legacy = legacy

    def ids(self, text):
        found = [1]
        for number, part in enumerate(re.split("(<unk>|<s>|</s>)", text)):
            if part in SPECIAL:
                found.append(SPECIAL[part])
            elif part and (self.legacy or number == 0):
                found += self.pieces.encode(part)
            elif part:  # no dummy prefix behind a special token: encode with a known start, drop it
                known = self.pieces.encode("\n")  # a byte piece, which nothing merges with
                both = self.pieces.encode("\n" + part)
                assert both[: len(known)] == known
                found += both[len(known) :]
        return found

    def with_images(self, text):
        """tokenizer_image_token: chunks on their own, each but the first without its BOS."""
        found = []
        for number, chunk in enumerate(text.split("<image>")):
            ids = self.ids(chunk)
            found += ids if number == 0 else [IMAGE_TOKEN_INDEX, *ids[1:]]
        return found


def llavas_own(slow, template, turns):
    """preprocess_plain, preprocess_v1 and preprocess_llama_2 in one: split at </s>, tokenise rounds again, subtract."""
    prompt = "".join(span.text for span in get_template(template).render(place_images(turns)))
    ids = slow.with_images(prompt)
    labels = list(ids)
    if template == "plain":
        labels[:2] = [IGNORE_INDEX] * 2
        return ids, labels
    header = {"v1": " ASSISTANT: ", "llava_llama_2": "[/INST] "}[template]
    position = 1
    labels[0] = IGNORE_INDEX
    for number, text in enumerate(prompt.split("</s>")):
        if not text:
            break
        instruction = len(slow.with_images(text.split(header)[0] + header)) - 2
        length = len(slow.with_images(text))
        if number and not slow.legacy:  # the round alone has a dummy prefix that it lacks in the conversation
            instruction -= 1
            length -= 1
        labels[position : position + instruction] = [IGNORE_INDEX] * instruction
        position += length
    assert position == len(ids), "LLaVA would mask this sample"
    return ids, labels


def golden_cases(golden):
    for sample in golden["samples"]:
        yield sample, parse_record(sample["record"], "golden.json", 0)


def test_equals_llava_to_the_id(golden, small_tokenizer):
    checked = {"plain": 0, "v1": 0}
    for sample, record in golden_cases(golden):
        if sample["llava_masked_everything"]:
            continue
        found = encode(record.turns, get_template(sample["template"]), small_tokenizer)
        assert found.input_ids == sample["input_ids"], record.id
        assert found.labels == sample["labels"], record.id
        checked[sample["template"]] += 1
    assert checked == {"plain": 12, "v1": 10}


def test_text_stays_text_where_llava_masks_everything(golden, small_tokenizer):
    masked = [(s, r) for s, r in golden_cases(golden) if s["llava_masked_everything"]]
    assert len(masked) == 10
    for sample, record in masked:
        found = encode(record.turns, get_template("v1"), small_tokenizer)
        answers = len(record.turns) // 2
        assert found.input_ids.count(2) == answers < sample["input_ids"].count(2)
        assert found.labels.count(2) == answers
        said = small_tokenizer.decode([i for i in found.labels if i >= 0]).replace(" ", "")
        for turn in record.turns[1::2]:
            assert turn.value.replace(" ", "").replace("\t", "") in said


def test_generation_prompts_equal_llavas(golden, small_tokenizer):
    for case in golden["generation"]:
        question = f"<image>\n{case['question']}"
        assert render_prompt(get_template("v1"), question) == case["prompt"]
        if "</s>" not in case["question"]:
            assert encode([Turn("human", question)], get_template("v1"), small_tokenizer).input_ids == case["input_ids"]


CONVERSATIONS = [
    [("human", "<image>\nWhat  is\tthis?"), ("gpt", "A caf\u00e9 \u2014 na\u00efve, don't. ")],
    [("human", "Where?\n<image>"), ("gpt", "[0.12, 0.30, 0.91]"), ("human", "and\n\nnow"), ("gpt", "\u65e5\u672c")],
    [
        *[("human", "Hi"), ("gpt", "1,000 x=y & ###\n- a\n-  b")],
        *[("human", "  Q  "), ("gpt", "yes"), ("human", ""), ("gpt", "\U0001f642!")],
    ],
    [("human", "Is <image>\nlike <image>?"), ("gpt", "no  \u00a0way")],
]


# (LLaVA's preprocess_llama_2 miscounts when legacy is False, so there is nothing to be equal to)
@pytest.mark.parametrize(
    ("kind", "template"),
    [("large", "plain"), ("large", "v1"), ("large", "llava_llama_2"), ("modern", "plain"), ("modern", "v1")],
)
def test_real_tokenizer_equals_sentencepiece_with_llavas_rule(kind, template, large_folder, request):
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    assert len(tokenizer) == 32000
    slow = SlowLlama(large_folder, legacy=kind == "large")
    for conversation in CONVERSATIONS[: 1 if template == "plain" else 4]:
        turns = [Turn(*turn) for turn in conversation]
        ids, labels = llavas_own(slow, template, turns)
        found = encode(turns, get_template(template), tokenizer)
        assert found.input_ids == ids
        assert found.labels == labels


def test_labels_and_ids_agree_and_images_are_never_learned(large_tokenizer):
    found = encode([Turn(*turn) for turn in CONVERSATIONS[3]], get_template("v1"), large_tokenizer)
    assert len(found.input_ids) == len(found.labels)
    assert found.input_ids.count(IMAGE_TOKEN_INDEX) == 2
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(found.input_ids, found.labels, strict=True))
    assert found.labels[found.input_ids.index(IMAGE_TOKEN_INDEX)] == IGNORE_INDEX


def test_typed_special_token_is_refused_where_it_cannot_stay_text(modern_tokenizer):
    with pytest.raises(DataError, match="holds the special token '</s>'"):
        encode([Turn("human", "Q"), Turn("gpt", "strike</s> it")], get_template("v1"), modern_tokenizer)


def test_chatml(byte_level_tokenizer):
    said = [("human", "<image>\na red circle"), ("gpt", "the <|im_end|> square"), ("human", "b"), ("gpt", "c")]
    turns = [Turn(*turn) for turn in said]
    found = encode(turns, get_template("chatml_direct"), byte_level_tokenizer)
    end = byte_level_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert found.labels.count(end) == 2  # the typed one is text
    learned = byte_level_tokenizer.decode([i for i in found.labels if i >= 0])
    assert learned == "the <|im_end|> square<|im_end|>c<|im_end|>"


FITS = {
    "</s>": ("small_tokenizer", "large_tokenizer", "modern_tokenizer"),
    "<|im_end|>": ("byte_level_tokenizer",),
    "<|eot_id|>": ("llama_3_tokenizer",),
    "<end_of_turn>": ("gemma_tokenizer",),
    "<|end|>": ("phi_3_tokenizer", "phi_3_llama_tokenizer"),
}
EVERY = [name for names in FITS.values() for name in names]
ALSO = {"phi_3_llama_tokenizer": ("</s>",)}  # it is a Llama tokenizer still, with "</s>" no longer its eos


@pytest.mark.parametrize("tokenizer", EVERY)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_round_trip_accepts_what_fits_and_refuses_the_rest(name, tokenizer, request):
    template = get_template(name)
    loaded = request.getfixturevalue(tokenizer)
    if template.end is None or tokenizer in FITS[template.end]:
        check_round_trip(template, loaded)
    else:
        reason = "must be one special token but encodes to [0-9]+ ids"
        if template.end in ALSO.get(tokenizer, ()):
            reason = "answers end with '</s>' but the tokenizer's eos is '<.endoftext.>'"
        with pytest.raises(DataError, match=reason):
            check_round_trip(template, loaded)


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        *[(name, "byte_level_tokenizer") for name in ("qwen_1_5", "qwen_2_5", "qwen_3", "mpt")],
        *[("llava_llama_3", "llama_3_tokenizer"), ("gemma_instruct", "gemma_tokenizer")],
        ("phi_3", "phi_3_tokenizer"),
    ],
)
def test_ids_are_those_of_the_whole_text_and_labels_the_answers(name, tokenizer, request):
    """The families' own way: the rendered conversation, tokenised at once behind what the tokenizer puts in front."""
    loaded, template = request.getfixturevalue(tokenizer), get_template(name)
    said = [("human", "the blue\n\nsquare?"), ("gpt", "a red circle.\n\n"), ("human", "\n and"), ("gpt", "the user\n")]
    turns = [Turn(*turn) for turn in said]
    found = encode(turns, template, loaded)
    assert found.input_ids == loaded.encode("".join(span.text for span in template.render(turns)))
    end = loaded.convert_tokens_to_ids(template.end)
    assert found.labels.count(end) == 2 and found.labels[-1] == end
    learned = loaded.decode([i for i in found.labels if i >= 0])
    assert learned == f"a red circle.\n\n{template.end}the user\n{template.end}"
    with_image = encode([Turn("human", "<image>\nthe square"), *turns[1:]], template, loaded)
    assert [i for i in with_image.labels if i >= 0] == [i for i in found.labels if i >= 0]


def test_a_typed_special_token_that_takes_white_space_along_is_refused(phi_3_tokenizer):
    with pytest.raises(DataError, match=r"holds the special token '<\|end\|>'"):
        encode([Turn("human", "Q <|end|>\nA"), Turn("gpt", "A")], get_template("phi_3"), phi_3_tokenizer)


def test_round_trip_refuses_another_eos(large_folder):
    tokenizer = load_tokenizer(large_folder)
    tokenizer.eos_token = "<unk>"
    with pytest.raises(DataError, match="end with '</s>' but the tokenizer's eos is '<unk>'"):
        check_round_trip(get_template("v1"), tokenizer)


def test_labels_of_regions_read_as_in_a_sentence(large_tokenizer, byte_level_tokenizer, small_tokenizer):
    for tokenizer in (large_tokenizer, byte_level_tokenizer, small_tokenizer):
        sentence = tokenizer.encode("above red circle", add_special_tokens=False)
        ids = encode_words(" red circle ", tokenizer)
        assert ids and sentence[-len(ids) :] == ids
        assert tokenizer.decode(ids).strip() == "red circle"
        assert encode_words("  ", tokenizer) == []


def test_loading(assets, small_tokenizer, large_tokenizer):
    for tokenizer in (small_tokenizer, large_tokenizer):
        assert tokenizer.padding_side == "right"
        assert tokenizer.pad_token == tokenizer.unk_token == "<unk>"
        assert tokenizer.pad_token_id == 0
    assert load_tokenizer(assets / "llm", model_max_length=77).model_max_length == 77


def test_an_empty_tokenizer_is_refused(tmp_path):
    LlamaTokenizer().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="encodes 'a red circle' to nothing"):
        load_tokenizer(tmp_path)


def test_a_pickled_tokenizer_still_equals(large_tokenizer, small_tokenizer):
    for tokenizer in (large_tokenizer, small_tokenizer):
        text = "a  b\tc [0.12"
        assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == tokenizer.encode(text)


def test_an_evaluation_prompt_keeps_the_questions_white_space(byte_level_tokenizer, large_tokenizer):
    """LLaVA's evaluation does not strip a question; its training does."""
    chatml = get_template("chatml_direct")
    ids = encode_prompt("<image>\nWhat \n", chatml, byte_level_tokenizer)
    text = "".join(span.text for span in chatml.render([Turn("human", "\nWhat \n")]))
    assert byte_level_tokenizer.decode([i for i in ids if i >= 0]) == text and ids.count(IMAGE_TOKEN_INDEX) == 1
    for template, tokenizer in ((chatml, byte_level_tokenizer), (get_template("v1"), large_tokenizer)):
        plain = encode([Turn("human", "<image>\nWhat is it?")], template, tokenizer).input_ids
        assert encode_prompt("<image>\nWhat is it?", template, tokenizer) == plain
        assert encode_prompt("<image>\nWhat is it? ", template, tokenizer) != plain
