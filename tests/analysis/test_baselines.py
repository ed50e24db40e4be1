"""Closed-form maps against scikit-learn and SciPy, streamed in parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_pat.analysis.baselines import LinearFit, constant_patches


def data(rows: int, width_in: int, width_out: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, width_in)) * random.uniform(0.1, 20, width_in) + 5 * random.normal(size=width_in)
    y = x @ random.normal(size=(width_in, width_out)) * 0.01 + random.normal(size=(rows, width_out)) - 1
    return x, y


def fitted(x: np.ndarray, y: np.ndarray) -> LinearFit:
    fit = LinearFit(x.shape[1], y.shape[1])
    half = len(x) // 3
    for part in (slice(0, half), slice(half, half), slice(half, len(x))):
        fit.update(torch.tensor(x[part]), torch.tensor(y[part]))
    return fit


@pytest.mark.parametrize("alpha", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("standardise", [False, True])
def test_ridge_equals_scikit_learn(alpha, standardise):
    linear_model, preprocessing = (pytest.importorskip(f"sklearn.{name}") for name in ("linear_model", "preprocessing"))
    x, y = data(60, 7, 5)
    new = data(10, 7, 5, seed=1)[0]
    scale_x, scale_y = (preprocessing.StandardScaler(with_std=standardise).fit(side) for side in (x, y))
    model = linear_model.Ridge(alpha) if alpha else linear_model.LinearRegression()
    model.fit(scale_x.transform(x), scale_y.transform(y))
    expected = scale_y.inverse_transform(model.predict(scale_x.transform(new)))
    found = fitted(x, y).ridge(alpha, standardise)(torch.tensor(new))
    assert found.dtype == torch.float64 and np.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("standardise", [False, True])
def test_procrustes_equals_scipy_for_equal_widths(standardise):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = data(40, 6, 6)
    scale_x, scale_y = (side.std(0) if standardise else np.ones(6) for side in (x, y))
    rotation, _ = linalg.orthogonal_procrustes((x - x.mean(0)) / scale_x, (y - y.mean(0)) / scale_y)
    new = data(9, 6, 6, seed=2)[0]
    expected = (new - x.mean(0)) / scale_x @ rotation * scale_y + y.mean(0)
    assert np.allclose(fitted(x, y).procrustes(standardise)(torch.tensor(new)), expected, atol=1e-9)


@pytest.mark.parametrize("width_in, width_out", [(4, 7), (7, 4)])
def test_procrustes_between_two_widths_is_the_best_orthonormal_map(width_in, width_out):
    x, y = data(50, width_in, width_out)
    weight = fitted(x, y).procrustes(standardise=False).weight.numpy()
    small = min(width_in, width_out)
    assert np.allclose(weight.T @ weight if width_out == small else weight @ weight.T, np.eye(small), atol=1e-10)
    cross = (x - x.mean(0)).T @ (y - y.mean(0))
    assert np.trace(weight.T @ cross) == pytest.approx(np.linalg.svd(cross, compute_uv=False).sum())


def test_a_linear_world_is_found_exactly():
    torch.manual_seed(0)
    x, weight, offset = torch.randn(30, 4).double(), torch.randn(4, 6).double(), torch.randn(6).double()
    fit = LinearFit(4, 6)
    fit.update(x, x @ weight + offset)
    found = fit.ridge(0.0)
    assert torch.allclose(found.weight, weight) and torch.allclose(found.offset, offset)
    with torch.autocast("cpu", torch.bfloat16):
        mapped = found(x.view(3, 10, 4).float())
    assert mapped.dtype == torch.float32 and torch.allclose(
        mapped, (x @ weight + offset).view(3, 10, 6).float(), atol=1e-5
    )


def test_features_that_never_change_or_repeat_do_no_harm():
    torch.manual_seed(0)
    x = torch.randn(20, 3).double()
    x = torch.cat([x, x[:, :1], torch.full((20, 1), 7.0, dtype=torch.float64)], 1)
    fit = LinearFit(5, 2)
    fit.update(x, x[:, :2])
    for found in (fit.ridge(0.0), fit.ridge(1e-6)):
        assert torch.allclose(found(x), x[:, :2], atol=1e-5) and found.weight[4].abs().max() < 1e-9
    assert torch.isfinite(fit.procrustes()(x)).all()


def test_constant_patches():
    project = constant_patches(torch.tensor([1.0, 2, 3]))
    assert torch.equal(project(torch.randn(2, 5, 7)), torch.tensor([1.0, 2, 3]).expand(2, 5, 3))
    with pytest.raises(ValueError, match=r"one finite vector \[D\], got \(2, 3\)"):
        constant_patches(torch.zeros(2, 3))


def test_errors():
    fit = LinearFit(3, 2)
    with pytest.raises(ValueError, match="at least two labelled patches, there are 0"):
        fit.ridge()
    with pytest.raises(ValueError, match=r"expected features \[P, 3\] and targets \[P, 2\], got \(4, 2\) and \(4, 2\)"):
        fit.update(torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="NaN"):
        fit.update(torch.full((1, 3), float("inf")), torch.ones(1, 2))
    with pytest.raises(ValueError, match="a ridge cannot be negative"):
        fit.ridge(-1.0)
