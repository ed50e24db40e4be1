"""Liger's kernels: asked for with what they can do here, and refused where they would be missing in silence."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations import liger as integration

from llava_pat.models import fused_kernels
from llava_pat.models.fused_kernels import fuse
from llava_pat.types import DataError


@pytest.fixture
def llm() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=20,
        )  # fmt: skip
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A GPU and a liger-kernel that writes down what it is asked for."""
    calls: list[tuple] = []
    package, patch = ModuleType("liger_kernel.transformers"), ModuleType("liger_kernel.transformers.monkey_patch")
    package._apply_liger_kernel_to_instance = lambda model, **keywords: calls.append((model, keywords))
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    for module in (ModuleType("liger_kernel"), package, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for module in (fused_kernels, integration):
        monkeypatch.setattr(module, "is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return calls


def test_the_language_model_gets_them_without_losses(llm: LlamaForCausalLM, asked: list[tuple]) -> None:
    fuse(llm, {"rope": False})
    assert asked == [(llm, {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False})]


def test_a_loss_of_ligers_is_refused(llm: LlamaForCausalLM, asked: list[tuple]) -> None:
    with pytest.raises(DataError, match="fused_linear_cross_entropy would change nothing"):
        fuse(llm, {"fused_linear_cross_entropy": True})
    assert not asked


def test_a_model_without_kernels_is_refused(llm: LlamaForCausalLM, asked: list[tuple]) -> None:
    llm.config.model_type = "own"
    with pytest.raises(DataError, match="no kernels for own; leave out --use_liger_kernel"):
        fuse(llm)


def test_without_liger(llm: LlamaForCausalLM, asked: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_kernels, "is_liger_kernel_available", lambda: False)
    with pytest.raises(DataError, match="pip install liger-kernel"):
        fuse(llm)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(llm: LlamaForCausalLM) -> None:
    with pytest.raises(DataError, match="need a GPU, and none is seen"):
        fuse(llm)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_they_compute_the_same(llm: LlamaForCausalLM) -> None:
    pytest.importorskip("liger_kernel")
    llm.cuda()
    ids = torch.arange(18, device="cuda").view(2, 9)

    def gradients() -> torch.Tensor:
        llm.zero_grad()
        llm.lm_head(llm.model(ids).last_hidden_state).logsumexp(-1).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in llm.parameters()])

    plain = gradients()
    fuse(llm)
    torch.testing.assert_close(gradients(), plain, rtol=1e-4, atol=1e-5)
