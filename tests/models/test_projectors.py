from __future__ import annotations

import pytest
import torch
from torch import nn

from llava_pat.models.projectors import build_projector


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("linear", {"weight": (7, 5), "bias": (7,)}),
        ("mlp1x_gelu", {"0.weight": (7, 5), "0.bias": (7,)}),
        ("mlp2x_gelu", {"0.weight": (7, 5), "0.bias": (7,), "2.weight": (7, 7), "2.bias": (7,)}),
        (
            "mlp3x_gelu",
            {
                "0.weight": (7, 5),
                "0.bias": (7,),
                "2.weight": (7, 7),
                "2.bias": (7,),
                "4.weight": (7, 7),
                "4.bias": (7,),
            },
        ),
    ],
)
def test_names_and_shapes_are_llavas(kind, shapes):
    projector = build_projector(kind, 5, 7)
    assert {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()} == shapes


def test_mlp_by_formula():
    projector = build_projector("mlp2x_gelu", 3, 4)
    x = torch.randn(2, 5, 3)
    state = projector.state_dict()
    inner = x @ state["0.weight"].T + state["0.bias"]
    exact_gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    torch.testing.assert_close(projector(x), exact_gelu @ state["2.weight"].T + state["2.bias"])


def test_initialisation_is_torchs_default():
    """Uniform in +-1/sqrt(fan_in) for weights and biases: deviation bound / sqrt(3), nothing beyond the bound."""
    torch.manual_seed(0)
    for name, tensor in build_projector("mlp2x_gelu", 64, 256).state_dict().items():
        bound = (64 if name.startswith("0") else 256) ** -0.5
        assert tensor.abs().max() <= bound
        assert tensor.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_same_seed_gives_llavas_draws():
    """Modules are made in LLaVA's order, so a seed gives the same start."""
    torch.manual_seed(3)
    ours = build_projector("mlp2x_gelu", 5, 7).state_dict()
    torch.manual_seed(3)
    first, second = nn.Linear(5, 7), nn.Linear(7, 7)
    assert torch.equal(ours["0.weight"], first.weight) and torch.equal(ours["2.bias"], second.bias)


def test_identity():
    projector = build_projector("identity", 6, 6)
    x = torch.randn(2, 6)
    assert not projector.state_dict() and torch.equal(projector(x), x)
    with pytest.raises(ValueError, match="gives 5.*takes 7"):
        build_projector("identity", 5, 7)


@pytest.mark.parametrize("kind", ["mlp0x_gelu", "mlp2x_relu", "", "LINEAR", "mlp2x_gelu "])
def test_unknown_kind(kind):
    with pytest.raises(ValueError, match="unknown projector.*mlp2x_gelu"):
        build_projector(kind, 5, 7)
