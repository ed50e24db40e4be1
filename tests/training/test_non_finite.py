"""A loss or gradient that is not finite ends the run before the optimizer steps, and names the samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback

from llava_pat.training.stages import pretrain
from llava_pat.training.task import Divisors
from tests.training.faults.spoiling import poison


def test_a_poisoned_sample(world, make_trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = [int(i) for b in make_trainer().trainer.get_train_dataloader() for i in b["sample_index"]]
    bad = order[9]  # the second micro-batch of step 5
    poison(monkeypatch, bad)
    out = tmp_path / "llava-run"
    with pytest.raises(FloatingPointError) as error:
        pretrain(world.argv(out))
    message = str(error.value)
    assert "projected patches hold NaN or infinite values at step 5 of 6" in message and f"['train-{bad}']" in message
    assert str(out / "checkpoint-4") in message
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    kept = torch.load(out / "checkpoint-4" / "mm_projector.bin", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert not (out / "mm_projector.bin").exists() and not (out / "metrics.json").exists()


class At(TrainerCallback):
    """Calls something when a step begins."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **keywords) -> None:
        if state.global_step == self.step:
            self.action()


@pytest.mark.parametrize("max_grad_norm", [0, 1])
def test_an_infinite_gradient(make_trainer, max_grad_norm: float) -> None:
    """The loss is fine; the whole window's samples are named, and the weights stay as they were."""
    made = make_trainer(max_grad_norm=max_grad_norm, save_strategy="no", learning_rate=1e-2)
    weight = made.task.model.projector[0].weight
    kept = {}

    def break_gradients() -> None:
        kept["weight"] = weight.detach().clone()
        weight.register_hook(lambda gradient: gradient * float("inf"))

    made.trainer.add_callback(At(3, break_gradients))
    order = [int(i) for batch in made.trainer.get_train_dataloader() for i in batch["sample_index"]]
    with pytest.raises(FloatingPointError, match="the gradient norm is (nan|inf) at step 4 of 6") as error:
        made.trainer.train()
    for index in order[6:8]:
        assert f"'train-{index}'" in str(error.value)
    assert "No checkpoint was written yet" in str(error.value)
    assert torch.equal(weight, kept["weight"])


def test_broken_weights(make_trainer) -> None:
    made = make_trainer(save_strategy="no")
    projector = made.task.model.projector
    made.trainer.add_callback(At(1, lambda: projector[2].bias.data.fill_(float("inf"))))
    with pytest.raises(FloatingPointError, match="projected patches .* at step 2 of 6; samples"):
        made.trainer.train()


def test_a_loss_that_is_not_finite(make_trainer) -> None:
    made = make_trainer(save_strategy="no")
    made.trainer.add_callback(At(2, lambda: made.task.model.llm.lm_head.weight.data.fill_(float("nan"))))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 3 of 6; samples"):
        made.trainer.train()


def test_fp16_may_overflow(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss scaler finds the scale by overflowing, and skips those steps itself."""
    made = make_trainer()
    made.trainer.begin_step([{"sample_index": torch.tensor([0])}], Divisors(torch.tensor(1.0), {}))
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda *_, **__: float("inf"))
    with pytest.raises(FloatingPointError):
        made.trainer._get_grad_norm(made.task)
    made.trainer.begin_step([{"sample_index": torch.tensor([0])}], Divisors(torch.tensor(1.0), {}))
    monkeypatch.setattr(made.trainer.args, "fp16", True)
    assert made.trainer._get_grad_norm(made.task) == float("inf")
