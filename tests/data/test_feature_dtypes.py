from __future__ import annotations

import pytest
import torch

from llava_pat.data.feature_dtypes import bytes_of_image, pack, relative_errors, unpack


def test_int8_by_hand():
    """Scales 2 / 127 and 0.5 / 127: 127 x -0.26 / 0.5 = -66.04, stored as -66."""
    packed = pack(torch.tensor([[[2.0, 0.0], [0.5, -0.26]]]), "int8")
    assert packed["features"].dtype == torch.int8 and packed["features"].tolist() == [[[127, 0], [127, -66]]]
    torch.testing.assert_close(packed["scales"], torch.tensor([[2 / 127, 0.5 / 127]]))
    back = unpack(packed, torch.float32)
    torch.testing.assert_close(back, torch.tensor([[[2.0, 0.0], [0.5, -66 * 0.5 / 127]]]))
    errors = relative_errors(torch.tensor([[[2.0, 0.0], [0.5, -0.26]]]), packed)
    lost = 0.26 - 66 * 0.5 / 127
    assert errors[0, 0] == 0 and errors[0, 1].item() == pytest.approx(lost / (0.25 + 0.0676) ** 0.5, rel=1e-4)


def test_zeros_stay_zeros():
    for dtype in ("int8", "bfloat16", "float16", "float32"):
        packed = pack(torch.zeros(1, 2, 3), dtype)
        assert not unpack(packed, torch.float32).any() and not relative_errors(torch.zeros(1, 2, 3), packed).any()


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_what_needs_no_rounding_is_not_rounded(given):
    features = torch.randn(3, 4, 5).to(given)
    for dtype in ("float32", str(given).removeprefix("torch.")):
        packed = pack(features, dtype)
        assert torch.equal(unpack(packed, given), features) and not relative_errors(features, packed).any()


def test_half_a_step_is_the_most_that_int8_loses():
    features = torch.randn(7, 16, 32) * torch.logspace(-6, 6, 16).unsqueeze(-1)
    packed = pack(features, "int8")
    steps = packed["scales"].unsqueeze(-1)
    assert ((unpack(packed, torch.float32) - features).abs() <= 0.5001 * steps).all()
    assert (packed["features"].abs().amax(-1) == 127).all()


def test_what_cannot_be_stored():
    with pytest.raises(ValueError, match="features reach 1e.05, which float16 cannot hold; take bfloat16"):
        pack(torch.full((1, 1, 1), 1e5), "float16")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            pack(torch.full((1, 1, 1), value), "int8")


def test_llavas_pretraining_takes_658_gb():
    """CLIP-L/336: 576 patches of 1024 values."""
    assert 558_128 * bytes_of_image(576, 1024, "bfloat16") == pytest.approx(658.4e9, rel=1e-3)
    assert bytes_of_image(576, 1024, "int8") == 576 * (1024 + 4)
    assert bytes_of_image(576, 1024, "float32") == 2 * bytes_of_image(576, 1024, "float16")
