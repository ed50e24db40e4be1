"""The base models' training loop: killed and resumed, it ends at the same bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from playground.fit import _schedule, fit

STEPS = 10


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def loss_of(model: nn.Module, stop_at: int | None = None, seen: list[int] | None = None):
    """A batch drawn from the step alone; `stop_at` is where the process dies."""

    def at(step: int):
        if step == stop_at:
            raise KeyboardInterrupt
        if seen is not None:
            seen.append(step)
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean()
        return loss, {"loss": float(loss.detach())}

    return at


def train(state, stop_at=None, seen=None, model=None, **more) -> nn.Module:
    model = module() if model is None else model
    settings = {"steps": STEPS, "learning_rate": 0.05, "warmup": 3, "save_every": 4} | more
    fit(model, loss_of(model, stop_at, seen), state=state, **settings)
    return model


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    return train(tmp_path_factory.mktemp("fit") / "whole.pt").state_dict()


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("stop_at", "resumed_at"), [(6, 4), (9, 8), (4, 4), (2, 0)])
def test_killed_and_resumed_is_uninterrupted(tmp_path, uninterrupted, stop_at, resumed_at):
    state, seen = tmp_path / "model.pt", []
    with pytest.raises(KeyboardInterrupt):
        train(state, stop_at)
    torch.manual_seed(99)  # another process, another state of the generator and another start
    other = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)) if resumed_at else None
    model = train(state, seen=seen, model=other)
    assert seen == [*range(resumed_at, STEPS)], "it goes on where the last state was saved"
    assert equal(model.state_dict(), uninterrupted)


def test_twice_killed(tmp_path, uninterrupted):
    for stop_at in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "model.pt", stop_at)
    assert equal(train(tmp_path / "model.pt").state_dict(), uninterrupted)


def test_training_moves_the_model(uninterrupted):
    start = module().state_dict()
    assert all(not torch.equal(start[name], uninterrupted[name]) for name in start)


def test_a_finished_training_is_only_loaded(tmp_path, uninterrupted, capsys):
    train(tmp_path / "model.pt")
    seen = []
    model = train(tmp_path / "model.pt", seen=seen)
    assert seen == [] and equal(model.state_dict(), uninterrupted)
    assert f"going on from step {STEPS}" in capsys.readouterr().out


def test_a_state_that_was_being_written_is_ignored(tmp_path, uninterrupted):
    (tmp_path / "model.part").write_bytes(b"half a state")
    assert equal(train(tmp_path / "model.pt").state_dict(), uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(tmp_path):
    model = module()
    good = loss_of(model)

    def poisoned(step: int):
        loss, shown = good(step)
        return (loss * float("nan") if step == 6 else loss), shown

    state = tmp_path / "model.pt"
    with pytest.raises(FloatingPointError, match="step 6 is nan.*last good state"):
        fit(model, poisoned, steps=STEPS, learning_rate=0.05, state=state, warmup=3, save_every=4)
    saved = torch.load(state, weights_only=True)
    assert saved["step"] == 4 and all(torch.isfinite(value).all() for value in saved["model"].values())


def test_reports_come_with_the_states(tmp_path):
    reported = []
    state = tmp_path / "model.pt"
    train(state, report=lambda step: reported.append((step, torch.load(state, weights_only=True)["step"])))
    assert reported == [(4, 4), (8, 8), (10, 10)]


def test_only_matrices_decay(tmp_path):
    """With a gradient of zero, AdamW leaves exactly the decay: lr * decay a step on matrices, nothing else."""
    model = module()
    nn.init.constant_(model[0].bias, 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def flat(step: int):
        return sum(p.sum() for p in model.parameters()) * 0.0, {}

    fit(model, flat, steps=1, learning_rate=0.3, state=tmp_path / "m.pt", warmup=1, weight_decay=0.1)
    for name, value in model.state_dict().items():
        factor = 1 - 0.3 * 0.1 if value.ndim == 2 else 1.0
        torch.testing.assert_close(value, before[name] * factor, rtol=1e-6, atol=0)


def test_schedule_by_hand():
    assert [_schedule(step, 10, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert _schedule(4, 10, 4) == 1.0
    assert _schedule(7, 10, 4) == pytest.approx(0.5)
    assert _schedule(9, 10, 4) == pytest.approx(0.5 * (1 + math.cos(math.pi * 5 / 6)))
