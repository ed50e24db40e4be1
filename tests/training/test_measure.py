"""The probe's figures by hand, on one rank and on two; measuring changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from llava_pat.analysis.vocabulary import Vocabulary
from llava_pat.data.words import Words
from llava_pat.training.measure import Probe
from llava_pat.training.stages import pretrain

WORDS = ("red", "blue", "ring", "square")  # ids 0 to 3; ring and square are kinds, red and blue colours


class OneHot(nn.Module):
    """Words are one-hot, "images" are their patches [I, 3, N] already, the "language model" predicts as it is told."""

    vision_width = hidden_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.patches: list[torch.Tensor] = []

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def embed_words(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.eye(6)[ids]

    def forward_hidden(self, input_ids, attention_mask, patches):
        return None

    def caption_loss_sum(self, hidden, labels):
        supervised = labels[:, 1:] != -100
        # "nats" of a target are its own value
        return (labels[:, 1:] * supervised).sum().float(), supervised.sum().float()


def single_words() -> Words:
    words = Vocabulary(WORDS, {"colour": (0, 1), "kind": (2, 3)})
    targets = {(0, 2): torch.tensor([True, False, True, False]), (1,): torch.tensor([False, True, False, False])}
    return Words(words, torch.arange(4)[:, None], torch.ones(4, 1, dtype=torch.bool), targets)


def label_words() -> Words:
    """The labels themselves as entries: "red ring" (mean of two words) and "blue"."""
    targets = {(0, 2): torch.tensor([True, False]), (1,): torch.tensor([False, True])}
    mask = torch.tensor([[True, True], [True, False]])
    return Words(Vocabulary(("red ring", "blue")), torch.tensor([[0, 2], [1, 0]]), mask, targets)


def batch(patches: list, labels: list, coverage: list, image: list, label_ids: list, label_mask: list) -> dict:
    count = len(image)
    return {
        "pixel_values": torch.tensor(patches), "input_ids": torch.tensor(labels), "labels": torch.tensor(labels),
        "attention_mask": torch.ones(1, 1), "region_coverage": torch.tensor(coverage).reshape(count, 3),
        "region_image": torch.tensor(image, dtype=torch.int64),
        "region_label_ids": torch.tensor(label_ids).reshape(count, 2),
        "region_label_mask": torch.tensor(label_mask, dtype=torch.bool).reshape(count, 2),
    }  # fmt: skip


E = torch.eye(6).tolist()
# Image 0: patch 0 is "ring" under "red ring"; patch 1 is "square" under it; patch 2 is covered too little.
FIRST = batch([[E[2], E[3], E[5]]], [[-100, 1, 2, -100]], [[1.0, 0.25, 0.24]], [0], [[0, 2]], [[1, 1]])
# Image 1: patch 1 is "blue" under "blue". Image 2 has no regions.
SECOND = batch([[E[5], E[1], E[5]], [E[5]] * 3], [[-100, 7, -100, -100], [-100, -100, -100, -100]], [[0.0, 1.0, 0.0]],
               [0], [[1, 0]], [[1, 0]])  # fmt: skip
EMPTY = batch([[E[5]] * 3], [[-100, 2]], [], [], [], [])
HALF = 1 / math.sqrt(2)


def test_by_hand() -> None:
    measured = Probe(single_words(), label_words()).measure(OneHot(), [FIRST, SECOND, EMPTY])
    assert measured["caption_loss"] == pytest.approx((1 + 2 + 7 + 2) / 4)  # over tokens, not over batches
    # labelled: ring under "red ring" (cosine to (red + ring)/2 is 1/sqrt 2), square under it (0), blue under "blue" (1)
    assert measured["labelled_patches"] == 3
    assert measured["patch_cosine"] == pytest.approx((HALF + 0 + 1) / 3)
    assert measured["hit_at_1"] == pytest.approx(2 / 3)  # ring and blue; the square's nearest word is square
    assert measured["hit_at_5"] == pytest.approx(1.0)  # only four words
    # colours: the ring patch is as far from red as from blue (a tie is a miss), so is the square; blue is right
    assert measured["hit_colour"] == pytest.approx(1 / 3)
    assert measured["hit_kind"] == pytest.approx(1 / 2)  # "blue" names no kind
    assert measured["hit_label_at_1"] == pytest.approx(2 / 3)  # square: both labels at cosine 0, a tie
    # twelve patches: 9 unit vectors e5, one each of e1, e2, e3 (uncentred: shares of the trace)
    expected = -(9 / 12) * math.log(9 / 12) - 3 * (1 / 12) * math.log(1 / 12)
    assert FIRST["pixel_values"].shape[0] + SECOND["pixel_values"].shape[0] + EMPTY["pixel_values"].shape[0] == 4
    assert measured["entropy_patches"] == pytest.approx(expected)
    assert measured["entropy_features"] == pytest.approx(expected)
    assert measured["entropy_patches_centred"] != pytest.approx(expected, rel=1e-3)


def test_two_ranks_are_one() -> None:
    """Each rank's tensors in the order in which it offers them, summed with the other rank's."""
    alone = Probe(single_words(), label_words()).measure(OneHot(), [FIRST, SECOND, EMPTY])
    shares = ([FIRST, EMPTY], [SECOND])
    offered: list[list[torch.Tensor]] = [[], []]
    for rank, batches in enumerate(shares):
        Probe(single_words(), label_words()).measure(
            OneHot(), batches, lambda tensor, rank=rank: offered[rank].append(tensor.clone())
        )
    assert len(offered[0]) == len(offered[1]) > 0
    for rank, batches in enumerate(shares):
        others = iter(offered[1 - rank])
        measured = Probe(single_words(), label_words()).measure(
            OneHot(), batches, lambda tensor, others=others: tensor.add_(next(others))
        )
        assert measured == pytest.approx(alone, abs=1e-12)


def test_what_nothing_was_seen_for_is_left_out() -> None:
    measured = Probe(single_words(), label_words()).measure(OneHot(), [EMPTY])
    assert measured["labelled_patches"] == 0 and not [name for name in measured if name.startswith(("hit", "patch_"))]
    without = Probe(None, None).measure(OneHot(), [FIRST])
    assert set(without) == {"caption_loss", "entropy_features", "entropy_features_centred", "entropy_patches",
                            "entropy_patches_centred"}  # fmt: skip
    text_only = FIRST | {"pixel_values": torch.zeros(0, 3, 6)}
    assert set(Probe(None, None).measure(OneHot(), [text_only])) == {"caption_loss"}


@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_neither_random_state_nor_mode(make_trainer, training: bool) -> None:
    made = make_trainer()
    made.task.train(training)
    modes = {name: module.training for name, module in made.task.named_modules()}
    weights = {name: tensor.clone() for name, tensor in made.task.state_dict().items()}
    state = torch.get_rng_state()
    first = made.trainer.measure()
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in made.task.named_modules()} == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.task.state_dict().items())
    assert all(parameter.grad is None for parameter in made.task.parameters())
    assert made.trainer.measure() == first


def test_measuring_during_training_does_not_change_the_run(world, tmp_path: Path) -> None:
    """With an objective that draws random numbers: a measure that moves the random state would show."""
    flags = {"alignment": "my_package.my_module", "logging_steps": 1, "save_strategy": "no", "num_train_epochs": 2}
    logs = []
    for name, more in (("with", {"eval_strategy": "steps", "eval_steps": 2}), ("without", {})):
        out = tmp_path / f"llava-{name}"
        pretrain(world.argv(out, **flags, **more))
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        logs.append([{k: v for k, v in x.items() if k != "samples_per_second"} for x in history if "caption_loss" in x])
        assert sum("eval_caption_loss" in line for line in history) == (6 if more else 0)
    assert logs[0] == logs[1] and len(logs[0]) == 12
    one, other = ((tmp_path / f"llava-{name}" / "mm_projector.bin").read_bytes() for name in ("with", "without"))
    assert one == other


def test_held_out_figures_are_the_same_for_every_batch_size(make_trainer) -> None:
    one = make_trainer(per_device_eval_batch_size=1).trainer.measure()
    five = make_trainer(per_device_eval_batch_size=5).trainer.measure()
    assert one == pytest.approx(five, abs=1e-5)
