"""The last layer's feed-forward network where it is read: loss and gradients stay, rows are left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GptOssConfig, MixtralConfig, OPTConfig, Qwen3MoeConfig

from llava_pat.models.adapters import add_lora
from llava_pat.models.last_layer import LastLayer
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.models.families import FAMILIES, model_of

GPT2 = GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50, n_positions=64, initializer_range=0.4)
I = IMAGE_TOKEN_INDEX  # noqa: E741
IDS = torch.tensor([[1, I, I, I, I, 7, 8, 9, 10], [1, I, I, I, I, 20, 21, 0, 0]])
MASK = torch.tensor([[True] * 9, [True] * 7 + [False] * 2])
LABELS = torch.tensor([[-100] * 6 + [8, 9, 10], [-100] * 5 + [20, 21, -100, -100]])
READ = 5


def step(model, labels: Tensor | None) -> dict[str, Tensor]:
    """Loss and gradients."""
    model.zero_grad()
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    patches = model.project(model.encode_images(pixels))
    hidden = model.forward_hidden(IDS, MASK, patches, labels)
    total, count = model.caption_loss_sum(hidden, LABELS)
    (total / count).backward()
    return {"loss": total.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def rows_of_networks(model) -> list[int]:
    """Rows that each layer's network is called with, layer by layer."""
    rows: list[int] = []
    for name, module in model.llm.named_modules():
        if name.endswith(".mlp"):  # behind the hooks that were there before
            module.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[:-1].numel()))
    return rows


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
@pytest.mark.parametrize("padding_free", [False, True], ids=["padded", "padding-free"])
def test_loss_and_gradients_stay(family: str, padding_free: bool) -> None:
    model = model_of((FAMILIES | {"gpt2": GPT2})[family], "eager" if family == "gemma2" else None)
    model.set_trainable(llm=True)
    if padding_free:
        model.remove_padding()
    whole = step(model, None)
    rows = rows_of_networks(model)
    saving = step(model, LABELS)
    assert rows == [16 if padding_free else 18, READ]
    assert_same(saving, whole)


def test_with_adapters_and_a_frozen_model() -> None:
    for lora in (False, True):
        model = model_of(FAMILIES["llama"])
        model.freeze_for_stage1()
        if lora:
            add_lora(model, r=2, dropout=0.0)
            for name, parameter in model.llm.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter)
        whole = step(model, None)
        rows = rows_of_networks(model)
        assert_same(step(model, LABELS), whole)
        assert rows == [18, READ]


def test_checkpointed_layers_do_all_their_work() -> None:
    """Recomputed in the backward pass, a layer must do what it did in the forward pass."""
    model = model_of(FAMILIES["llama"])
    model.set_trainable(llm=True)
    model.train()
    whole = step(model, None)
    model.gradient_checkpointing_enable()
    rows = rows_of_networks(model)
    assert_same(step(model, LABELS), whole)
    assert set(rows) == {18}


def test_nothing_stays_behind_a_forward_pass() -> None:
    model = model_of(FAMILIES["llama"])
    with torch.no_grad():
        before = model.llm(input_ids=torch.arange(3, 9).unsqueeze(0)).logits
        step_labels = torch.full_like(LABELS, IGNORE_INDEX)
        patches = torch.zeros(2, 4, 24)
        hidden = model.forward_hidden(IDS, MASK, patches, step_labels)  # nothing is supervised: no row at all
        assert torch.isfinite(hidden).all()
        assert torch.equal(model.llm(input_ids=torch.arange(3, 9).unsqueeze(0)).logits, before)
    with pytest.raises(RuntimeError), model._last_layer.only(torch.ones(2, 9, dtype=torch.bool)):
        raise RuntimeError
    assert torch.equal(model.llm(input_ids=torch.arange(3, 9).unsqueeze(0)).logits, before)


@pytest.mark.parametrize("kind", [MixtralConfig, GptOssConfig, Qwen3MoeConfig])
def test_experts_see_all_positions(kind: type) -> None:
    """What they return beside the hidden states is counted over all tokens."""
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    model = model_of(kind(**sizes, num_key_value_heads=1, head_dim=12, num_local_experts=2, num_experts_per_tok=1))
    assert LastLayer.of(model.llm) is None


def test_a_decoder_without_such_a_part_is_left_alone() -> None:
    sizes = {"hidden_size": 24, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
             "word_embed_proj_dim": 24}  # fmt: skip
    model = model_of(OPTConfig(**sizes))
    assert LastLayer.of(model.llm) is None
    model.set_trainable(llm=True)
    assert_same(step(model, LABELS), step(model, None))
