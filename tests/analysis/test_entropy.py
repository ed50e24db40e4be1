"""Von Neumann entropy against closed forms, and its streamed form against the direct one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llava_pat.analysis.entropy import PooledEntropy, spectrum_entropy, von_neumann_entropy, von_neumann_spectrum


def two_point(a: float) -> float:
    """-a ln a - (1 - a) ln(1 - a)."""
    return -a * math.log(a) - (1 - a) * math.log(1 - a)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [6, 40])
def test_orthonormal_rows_have_ln_n(dtype, width):
    assert von_neumann_entropy(torch.eye(6, width, dtype=dtype)).item() == pytest.approx(math.log(6), abs=1e-5)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_identical_rows_have_none(dtype, tolerance, centred):
    torch.manual_seed(0)
    value = von_neumann_entropy(torch.randn(32, dtype=dtype).expand(576, 32), centred).item()
    assert 0.0 <= value <= tolerance


def test_two_vectors_at_an_angle():
    # rho = (aa' + bb') / 2 has the eigenvalues (1 +- cos) / 2
    for angle in (0.3, 1.0, 1.5):
        x = torch.tensor([[5.0, 0.0, 0.0], [2 * math.cos(angle), 2 * math.sin(angle), 0.0]], dtype=torch.float64)
        assert von_neumann_entropy(x).item() == pytest.approx(two_point((1 + math.cos(angle)) / 2), abs=1e-12)
        assert von_neumann_entropy(x, centred=True).item() == pytest.approx(0.0, abs=1e-12)  # a pair spans one line


def test_centred_by_hand():
    # unit rows (+-1, 0) twice and (0, +-1) once each: mean 0, covariance diag(4, 2) / 6
    x = torch.tensor([[1, 0], [-3, 0], [1, 0], [-1, 0], [0, 2], [0, -1]], dtype=torch.float64)
    assert von_neumann_entropy(x, centred=True).item() == pytest.approx(two_point(1 / 3), abs=1e-12)
    # a common offset direction is removed: rows (c, s e_i), i = 1..3, have the covariance of a simplex, rank 2
    x = torch.cat([torch.full((3, 1), 4.0, dtype=torch.float64), torch.eye(3, dtype=torch.float64)], -1)
    assert von_neumann_entropy(x, centred=True).item() == pytest.approx(math.log(2), abs=1e-12)
    assert von_neumann_entropy(x).item() < 0.5


def test_length_of_rows_does_not_matter():
    torch.manual_seed(0)
    x = torch.randn(7, 5, dtype=torch.float64)
    assert torch.allclose(von_neumann_entropy(x), von_neumann_entropy(x * torch.rand(7, 1).double() * 100))


def test_equals_the_definition_on_the_density_matrix():
    torch.manual_seed(0)
    for shape in ((4, 9), (9, 4)):
        x = torch.randn(shape, dtype=torch.float64)
        rows = x / x.norm(dim=-1, keepdim=True)
        rho = sum(torch.outer(row, row) for row in rows) / len(rows)
        values = torch.linalg.eigvals(rho).real.clamp_min(1e-300)
        assert von_neumann_entropy(x).item() == pytest.approx(-(values * values.log()).sum().item(), abs=1e-10)


def test_fp32_is_stable_and_batches_are_independent():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 256) + 3 * torch.randn(256)
    value = von_neumann_entropy(x)
    assert value.shape == (2, 3) and value.dtype == torch.float32
    assert torch.allclose(value, von_neumann_entropy(x.double()).float(), atol=1e-4)
    assert value[1, 2].item() == pytest.approx(von_neumann_entropy(x[1, 2]).item(), abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(von_neumann_entropy(x), value)


def test_zero_rows_count_for_nothing():
    x = torch.cat([torch.eye(3), torch.zeros(2, 3)])
    assert von_neumann_entropy(x).item() == pytest.approx(math.log(3), abs=1e-6)
    assert von_neumann_entropy(torch.zeros(2, 3)).item() == 0.0


def test_impossible_input_is_refused():
    with pytest.raises(ValueError, match=r"the tensor is \(0, 3\)"):
        von_neumann_entropy(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="NaN"):
        von_neumann_entropy(torch.full((2, 2), float("nan")))


@pytest.mark.parametrize("centred", [False, True])
def test_streamed_equals_direct(centred):
    torch.manual_seed(0)
    x = torch.randn(5, 8, 6, dtype=torch.float64) + 2
    pooled = PooledEntropy(6)
    for part in (x[:2], x[2], x[3:], x[:0]):
        pooled.update(part)
    direct = von_neumann_entropy(x.reshape(-1, 6), centred).item()
    assert pooled.rows == 40 and pooled.result(centred) == pytest.approx(direct, abs=1e-10)


@pytest.mark.parametrize("seed", range(8))
def test_streamed_identical_rows_have_none(seed):
    pooled = PooledEntropy(6)
    pooled.update(torch.rand(6, generator=torch.Generator().manual_seed(seed)).expand(1000, 6))
    assert pooled.result(centred=True) == 0.0 and pooled.result() == pytest.approx(0.0, abs=1e-9)


def test_streamed_errors():
    with pytest.raises(ValueError, match="nothing was added"):
        PooledEntropy(4).result()
    with pytest.raises(ValueError, match="width 3, the accumulator was made for 4"):
        PooledEntropy(4).update(torch.ones(2, 3))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [(5, 9), (12, 4)])
def test_spectrum_equals_numpys_singular_values(shape, centred):
    x = np.random.default_rng(0).normal(size=(3, *shape)) + 1
    rows = x / np.linalg.norm(x, axis=-1, keepdims=True)
    rows = rows - rows.mean(-2, keepdims=True) if centred else rows
    squares = np.linalg.svd(rows, compute_uv=False) ** 2
    expected = squares / squares.sum(-1, keepdims=True)
    shares = von_neumann_spectrum(torch.tensor(x), centred)
    assert shares.shape == (3, min(shape)) and np.allclose(shares, expected, atol=1e-12)
    kept = np.where(expected > 1e-14, expected, 1.0)
    assert np.allclose(von_neumann_entropy(torch.tensor(x), centred), -(kept * np.log(kept)).sum(-1), atol=1e-10)
    pooled = PooledEntropy(shape[1])
    pooled.update(torch.tensor(x[0]))
    streamed = pooled.spectrum(centred).numpy()
    assert streamed.shape == (shape[1],) and np.allclose(streamed[: min(shape)], expected[0], atol=1e-12)
    assert np.allclose(streamed[min(shape) :], 0, atol=1e-12)
    assert float(spectrum_entropy(pooled.spectrum(centred))) == pooled.result(centred)


def test_spectrum_by_hand_and_without_spread():
    shares = von_neumann_spectrum(torch.tensor([[3.0, 0, 0], [-2, 0, 0], [0, 5, 0], [1, 0, 0]]))
    assert torch.allclose(shares, torch.tensor([0.75, 0.25, 0.0]), atol=1e-6)
    assert von_neumann_spectrum(torch.ones(2, 3), centred=True).tolist() == [0.0, 0.0]
    assert spectrum_entropy(torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    assert spectrum_entropy(torch.full((4,), 0.25)).item() == pytest.approx(math.log(4))


def test_fp32_stands_close_to_fp64_where_one_direction_dominates():
    # as CLIP's patches do: a common direction a hundred times the rest
    torch.manual_seed(0)
    x = torch.randn(96, 128) + 100 * torch.randn(128)
    for centred in (False, True):
        exact = von_neumann_entropy(x.double(), centred).item()
        assert von_neumann_entropy(x, centred).item() == pytest.approx(exact, abs=2e-3)
    assert von_neumann_entropy(x).item() < 0.1 < 4 < von_neumann_entropy(x, centred=True).item()
