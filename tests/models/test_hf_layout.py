"""What goes into a llava-hf folder: the vocabulary's new rows, the names, the chat template as training renders it."""

from __future__ import annotations

import jinja2.sandbox
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from llava_pat.models.hf_layout import (
    ChatFormat,
    chat_template,
    image_processor_config,
    with_image_token,
    with_rows,
)
from llava_pat.models.shards import lazy
from llava_pat.models.source import from_hf_name

V1 = ChatFormat("SYSTEM. USER: ", "USER: ", " ASSISTANT:", " ", "</s>")


def render(messages, template=V1, add_generation_prompt=True):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    # as transformers sets it up
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    compiled = environment.from_string(chat_template(template))
    return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt)


def user(*parts):
    return {"role": "user", "content": [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]}


def answer(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_one_image_stands_in_front_wherever_it_was():
    expected = "SYSTEM. USER: <image>\nWhat? ASSISTANT:"
    assert render([user(None, "What?")]) == render([user("What?", None)]) == expected
    assert render([{"role": "user", "content": "<image>\nWhat?"}]) == expected  # as 4.37's users write it


def test_turns():
    messages = [user(None, "Q1"), answer("A1"), user("Q2"), answer("A2")]
    whole = "SYSTEM. USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>"
    assert render(messages, add_generation_prompt=False) == whole
    assert render(messages[:3]) == "SYSTEM. USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"
    assert render([user("no image")]) == "SYSTEM. USER: no image ASSISTANT:"


def test_several_images_stay_where_they_are():
    assert render([user(None, " or ", None, "?")]) == "SYSTEM. USER: <image> or <image>? ASSISTANT:"
    spread = [user(None, "\nA?"), answer("a"), user(None, "\nB?")]
    assert render(spread) == "SYSTEM. USER: <image>\nA? ASSISTANT: a</s>USER: <image>\nB? ASSISTANT:"


def test_strings_are_kept_whatever_they_hold():
    odd = ChatFormat('<|im_start|>"s"\\\n{{ x }} {% if %} caf\u00e9', "b\n", "\n\t", "", "\n")
    text = '{{ y }} "q" \\n {% z %}'
    assert render([user(text)], odd) == f"{odd.opening}{text}{odd.header}"


@pytest.mark.parametrize("roles", [["system", "user"], ["assistant"], ["user", "user"]])
def test_roles_that_no_training_had_are_refused(roles):
    with pytest.raises(jinja2.exceptions.TemplateError, match="roles must alternate"):
        render([{"role": role, "content": "x"} for role in roles])


def test_new_rows_are_like_the_old():
    torch.manual_seed(0)
    old = (torch.randn(5000, 8) * torch.arange(1, 9) + 3).to(torch.bfloat16)
    grown = with_rows(lazy(old), 5064, seed=0)
    rows = grown.read()
    assert grown.shape == (5064, 8) and rows.dtype == torch.bfloat16 and torch.equal(rows[:5000], old)
    assert torch.equal(rows, with_rows(lazy(old), 5064, seed=0).read())  # the same every time
    assert not torch.equal(rows[5000:], with_rows(lazy(old), 5064, seed=1).read()[5000:])
    assert with_rows(lazy(old), 5000, seed=0).read().shape == old.shape
    precise = with_rows(lazy(old.float()), 25000, seed=0).read()[5000:]
    torch.testing.assert_close(precise.mean(0), old.float().mean(0), atol=1e-3, rtol=0)
    spread = precise.var(0) / old.float().var(0)  # 1e-5 of the old covariance; 20,000 samples know it to 1 %
    torch.testing.assert_close(spread, torch.full((8,), 1e-5), atol=0, rtol=0.05)


def test_image_and_pad_stand_behind_the_vocabulary():
    words = {f"w{i}": i for i in range(100)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    grown, vocabulary = with_image_token(tokenizer, rows=100)
    assert (vocabulary.image_id, vocabulary.pad_id, vocabulary.rows) == (100, 101, 128)
    assert grown.encode("<image>").ids == [100] and tokenizer.get_vocab_size() == 100
    assert with_image_token(tokenizer, rows=512)[1].rows == 512  # there is room already (Qwen's embeddings)


def test_names_of_every_version_lead_to_llavas():
    for name, expected in {
        "language_model.model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "language_model.lm_head.weight": "lm_head.weight",
        "lm_head.weight": "lm_head.weight",
        "multi_modal_projector.linear_2.bias": "model.mm_projector.2.bias",
        "model.multi_modal_projector.linear_1.weight": "model.mm_projector.0.weight",
        "vision_tower.vision_model.post_layernorm.bias": (
            "model.vision_tower.vision_tower.vision_model.post_layernorm.bias"
        ),
        "vision_tower.post_layernorm.bias": "model.vision_tower.vision_tower.vision_model.post_layernorm.bias",
        "something.else": "something.else",
    }.items():
        assert from_hf_name(name) == expected


def test_only_padding_asks_for_llavas_image_processor():
    source = {"image_mean": [0.5] * 3, "crop_size": {"height": 2, "width": 2}, "unrelated": 1}
    padded, cropped = (image_processor_config(source, aspect) for aspect in ("pad", "square"))
    assert (padded["image_processor_type"], padded["do_pad"]) == ("LlavaImageProcessor", True)
    assert cropped["image_processor_type"] == "CLIPImageProcessor" and "do_pad" not in cropped
    assert "unrelated" not in padded and padded["image_mean"] == [0.5] * 3
