from __future__ import annotations

import logging

import pytest
import torch

IDS = torch.tensor([[1, *[-200] * 4, 5, 6, 7]])


def step(model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    patches = model.project(model.encode_images(torch.randn(1, 3, 28, 28)))
    labels = IDS.masked_fill(IDS < 0, -100)
    total, count = model.caption_loss_sum(model.forward_hidden(IDS, torch.ones_like(IDS), patches), labels)
    (total / count).backward()
    return {name: parameter.grad.clone() for name, parameter in model.projector.named_parameters()}


def test_only_the_projector_changes(tiny_vlm, caplog):
    model = tiny_vlm()
    with caplog.at_level(logging.INFO, logger="llava_pat.models.vlm"):
        model.freeze_for_stage1()
    assert [
        f"{part}: {n} of" in caplog.text
        for part, n in (("tower", 0), ("projector", 16 * 24 + 24 + 24 * 24 + 24), ("llm", 0))
    ] == [True] * 3
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    step(model)
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"projector.0.weight", "projector.0.bias", "projector.2.weight", "projector.2.bias"}


def test_frozen_parts_stay_in_eval(tiny_vlm):
    model = tiny_vlm(attention_dropout=0.5).train()
    assert model.llm.training and not model.tower.training  # before stage 1's freeze only the tower is frozen
    model.freeze_for_stage1()
    model.train()
    assert model.training and model.projector.training
    assert not any(module.training for part in (model.tower, model.llm) for module in part.modules())
    first, second = step(model), step(model)
    assert all(torch.equal(first[name], second[name]) for name in first)
    model.eval()
    assert not model.projector.training


def test_gradient_checkpointing_recomputes_and_changes_nothing(tiny_vlm):
    """A frozen language model is in eval mode, where transformers would skip checkpointing without a word."""
    model = tiny_vlm(attention_dropout=0.5)
    model.freeze_for_stage1()
    model.train()
    calls = []
    model.llm.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    plain = step(model)
    assert len(calls) == 1 and not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    recomputed = step(model)
    assert len(calls) == 3
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=0, atol=0)
    assert not model.llm.model.layers[0].self_attn.training  # dropout stays off
    model.eval()
    step(model)
    assert len(calls) == 4  # held-out evaluation does not pay for it
    model.train()
    model.gradient_checkpointing_disable()
    step(model)
    assert len(calls) == 5 and not model.is_gradient_checkpointing


@pytest.mark.filterwarnings("error::FutureWarning")
def test_gradient_checkpointing_without_deprecation_noise(tiny_vlm):
    model = tiny_vlm()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.gradient_checkpointing_disable()


def test_identity_projector_runs(tiny_vlm):
    model = tiny_vlm("identity", hidden_size=16)
    model.freeze_for_stage1()
    patches = model.project(model.encode_images(torch.randn(1, 3, 28, 28)))
    assert model.forward_hidden(IDS, torch.ones_like(IDS), patches).shape == (1, 8, 16)
