"""A step's gradient and log do not depend on how its sequences are cut into micro-batches (the real trainer)."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import TrainerCallback

# fp32 sums in another order and in matmuls of other shapes over three steps: measured below 5e-6 of the largest entry.
TOLERANCE = 1e-5

# No random choice, so that a step can be computed again.
SEA = {"labels": "regions", "window": 0, "sampling": "best", "dedup": "mask", "min_coverage": 0.0}


class Gradients(TrainerCallback):
    """Copies the gradients as the optimizer is about to see them."""

    def __init__(self, task: torch.nn.Module) -> None:
        self.task, self.steps = task, []

    def on_pre_optimizer_step(self, args, state, control, **keywords) -> None:
        named = self.task.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.requires_grad})


def run(made, steps: int) -> tuple[list[dict], list[dict]]:
    """Gradients and log lines of the first steps."""
    spy = Gradients(made.task)
    made.trainer.add_callback(spy)
    made.trainer.train()
    logs = [line for line in made.trainer.state.log_history if "caption_loss" in line]
    assert len(spy.steps) == len(logs) == steps
    return spy.steps, logs


def flags(batch: int, accumulation: int, **more: object) -> dict:
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    # no clipping: a scale on the whole gradient would hide behind it
    fixed = {"max_grad_norm": 0, "alignment_schedule": "constant", "save_strategy": "no", "logging_steps": 1}
    return fixed | sizes | more


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, gradient in one.items():
            scale = other[name].abs().max()
            assert scale > 0
            assert (gradient - other[name]).abs().max() <= TOLERANCE * scale, name


@pytest.mark.parametrize("unit", ["region", "patch"])
def test_4x1_is_1x4(make_trainer, unit: str) -> None:
    keywords = {"alignment_args": f'{{"unit": "{unit}"}}'}
    whole, whole_log = run(make_trainer(**flags(4, 1, **keywords)), 3)
    made = make_trainer(**flags(1, 4, **keywords))
    loader = made.trainer.get_train_dataloader()
    sizes = [len(batch["region_image"]) for batch in loader]
    assert 0 in sizes and len(set(sizes)) > 2, "the world must hold micro-batches without regions and uneven ones"
    cut, cut_log = run(made, 3)
    assert_same(cut, whole)
    for one, other in zip(cut_log, whole_log, strict=True):
        for name in ("caption_loss", "alignment_loss", "alignment_items", "alignment_weight", "grad_norm", "loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
        # the reported loss is what was optimised
        assert one["loss"] == pytest.approx(one["caption_loss"] + 2 * one["alignment_loss"], abs=2e-4)


def test_a_short_last_window_is_divided_by_what_it_holds(make_trainer) -> None:
    """12 records in windows of 5: the last one has 2 micro-batches."""
    cut, _ = run(make_trainer(**flags(1, 5)), 3)
    whole, _ = run(make_trainer(**flags(5, 1)), 3)
    assert_same(cut, whole)


@pytest.mark.parametrize("objective, keywords", [("my_package.my_module", {"noise": 0.0}), ("sea", SEA)])
def test_a_count_that_the_data_do_not_tell_is_the_mean_over_micro_batches(make_trainer, objective, keywords) -> None:
    chosen = {"alignment": objective, "alignment_args": json.dumps(keywords)}
    made = make_trainer(**flags(3, 2, max_steps=1, **chosen))
    batches = list(made.trainer.get_train_dataloader())[:2]
    (gradients,), _ = run(made, 1)

    again = make_trainer(**flags(3, 2, max_steps=1, **chosen))
    tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    model, own = again.task.model, again.task.objective
    total = 0
    for batch in batches:
        features = model.encode_images(batch["pixel_values"])
        patches = model.project(features)
        hidden = model.forward_hidden(batch["input_ids"], batch["attention_mask"], patches)
        aligned = own(again.task._alignment_inputs(batch, features, patches, 0, 1))
        total = total + model.caption_loss_sum(hidden, batch["labels"])[0] / tokens
        total = total + 2 * aligned.total / aligned.count.clamp_min(1) / len(batches)
    total.backward()
    expected = {name: p.grad for name, p in again.task.named_parameters() if p.requires_grad}
    assert_same([gradients], [expected])


def test_pat_stays_exact_beside_an_objective_with_micro_batches(make_trainer) -> None:
    """pat+sea with sea at weight 0 is pat, cut or whole; the log keeps them apart."""
    arguments = {"sea": SEA | {"weight": 0.0}}
    chosen = {"alignment": "pat+sea", "alignment_args": json.dumps(arguments)}
    whole, _ = run(make_trainer(**flags(4, 1)), 3)
    for batch, accumulation in ((4, 1), (1, 4)):
        found, log = run(make_trainer(**flags(batch, accumulation, **chosen)), 3)
        for step in found:
            assert not step.pop("objective.parts.sea.log_scale").any()
        assert_same(found, whole)
        for line in log:
            assert line["alignment/pat_items"] + line["alignment/sea_items"] == line["alignment_items"]
            assert (line["alignment/pat_weight"], line["alignment/sea_weight"], line["alignment_weight"]) == (2, 0, 1)
            assert line["loss"] == pytest.approx(line["caption_loss"] + line["alignment_loss"], abs=2e-4)
            assert line["alignment_loss"] == pytest.approx(2 * line["alignment/pat_loss"], rel=1e-6)
            assert {"alignment/sea_accuracy", "alignment/sea_skipped", "alignment/pat_patch_cosine"} <= line.keys()
    assert sum(line["alignment/sea_skipped"] for line in log) > 0, "some micro-batches of one image have one word"


def test_recomputing_activations_changes_nothing(make_trainer) -> None:
    """The recipe's gradient_checkpointing True: each decoder layer runs a second time in the backward pass."""
    kept, kept_log = run(make_trainer(**flags(2, 2, activation_checkpointing=False)), 3)
    made = make_trainer(**flags(2, 2, activation_checkpointing=True))
    calls = []
    made.task.model.llm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    recomputed, log = run(made, 3)
    assert len(calls) == 2 * 6  # six micro-batches
    assert_same(recomputed, kept)
    assert [line["loss"] for line in log] == [line["loss"] for line in kept_log]
