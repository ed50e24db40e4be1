"""Causal attention by blocks: torch's attention, its gradients, and where it is chosen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_pat.models import causal_attention as module
from llava_pat.models import sequence_attention
from llava_pat.models.causal_attention import causal_attention, is_faster


def states(heads: int, key_heads: int, positions: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, positions, 8), (2, key_heads, positions, 8), (2, key_heads, positions, 8)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def torchs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)


def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return causal_attention(query, key, value, 0.3)


def results(attend, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = attend(*inputs)
    output.backward(torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype))
    return [output.detach(), *(tensor.grad for tensor in inputs)]


# around the edges of a block
@pytest.mark.parametrize("positions", [1, 127, 128, 129, 300])
@pytest.mark.parametrize(("heads", "key_heads"), [(3, 3), (4, 2)])
def test_it_is_torchs_attention(positions: int, heads: int, key_heads: int) -> None:
    inputs = states(heads, key_heads, positions, torch.float64)
    for found, expected in zip(results(ours, inputs), results(torchs, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_its_gradient_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 3)
    inputs = [tensor[:1, :, :7, :3].detach().requires_grad_() for tensor in states(2, 1, 7, torch.float64)]
    assert torch.autograd.gradcheck(ours, inputs)


def test_in_bf16_it_is_as_near_as_torchs() -> None:
    inputs = states(4, 4, 300, torch.bfloat16)
    exact = results(torchs, [tensor.double() for tensor in inputs])
    for found, theirs, right in zip(results(ours, inputs), results(torchs, inputs), exact, strict=True):
        error, their_error = ((tensor.double() - right).norm() / right.norm() for tensor in (found, theirs))
        assert error < max(2 * their_error, 0.005)  # bf16 rounds to 0.004


def test_where_it_is_chosen() -> None:
    query, key, _ = states(2, 2, 5, torch.bfloat16)
    assert is_faster(query, key)
    with torch.no_grad():
        assert not is_faster(query, key)
    assert not is_faster(query.float(), key.float())
    assert not is_faster(query[:, :, -1:], key)  # one new position in front of many: generation
    assert not is_faster(query.to("meta"), key.to("meta"))


def test_under_autocast_it_computes_in_the_dtype_that_torchs_does() -> None:
    inputs = states(4, 2, 140, torch.float32)
    assert not is_faster(*inputs[:2])
    with torch.autocast("cpu", torch.bfloat16):
        assert is_faster(*inputs[:2])
        found, expected = results(ours, inputs), results(torchs, inputs)
        wide = [tensor.double() for tensor in inputs]
        assert ours(*wide).dtype == torchs(*wide).dtype == torch.float64
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    half = results(ours, [tensor.bfloat16() for tensor in inputs])
    for one, other in zip(found, half, strict=True):
        assert torch.equal(one, other.to(one.dtype))


def attended(**keywords) -> Tensor:
    query, key, value = (tensor[:1] for tensor in states(2, 2, 7, torch.bfloat16))
    output, _ = sequence_attention.attend_by_sequence(
        nn.Module(), query, key, value, None, sequence_lengths=(4, 3), scaling=0.3, **keywords
    )
    return output


def test_sequences_end_to_end_take_it_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    by_blocks = attended()
    monkeypatch.setattr(sequence_attention, "is_faster", lambda *_: False)
    torch.testing.assert_close(by_blocks, attended(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "special",
    [{"dropout": 0.1}, {"sliding_window": 2}, {"is_causal": False}, {"position_bias": torch.zeros(())}],
    ids=str,
)
def test_what_is_not_plainly_causal_stays_torchs(special: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(
        sequence_attention, "sdpa_attention_forward", lambda *_, **k: called.append(k) or [torch.ones(1, 1)]
    )
    attended(**special)
    assert len(called) == 2  # once a sequence
