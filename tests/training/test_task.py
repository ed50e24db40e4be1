"""The step's loss: with `none` transformers' own LLaVA, with `pat` caption + weight * sum / count."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_pat.alignment import build_objective, build_planned, plan_objectives
from llava_pat.alignment.base import AlignmentObjective
from llava_pat.training.task import AlignedTraining, Divisors
from llava_pat.types import IMAGE_TOKEN_INDEX, AlignmentLoss

HF_IMAGE_ID = 519  # transformers spends a vocabulary id on the image; no caption of the tiny world uses it
HF_NAMES = {"0": "linear_1", "2": "linear_2"}


@pytest.fixture
def parts(make_trainer):
    return make_trainer().parts


def batches_of(parts, *indices: list[int]) -> list[dict]:
    return [parts.collator([parts.train[i] for i in chosen]) for chosen in indices]


def window(*batches: dict) -> Divisors:
    caption = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    return Divisors(caption.float(), {"": torch.zeros(())}, len(batches))


def reference_of(model) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=model.tower.model.config, text_config=model.llm.config, image_token_index=HF_IMAGE_ID,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    config.vision_config.num_hidden_layers = len(model.tower.layers)  # the layers above -2 were dropped
    reference = LlavaForConditionalGeneration(config).eval()
    reference.model.vision_tower.load_state_dict(model.tower.model.state_dict())
    reference.model.language_model.load_state_dict(model.llm.model.state_dict())
    reference.lm_head.load_state_dict(model.llm.lm_head.state_dict())
    projector = {f"{HF_NAMES[k[0]]}{k[1:]}": v for k, v in model.projector.state_dict().items()}
    reference.model.multi_modal_projector.load_state_dict(projector)
    return reference


def test_none_is_transformers_llava_in_loss_and_gradient(parts) -> None:
    first, second = batches_of(parts, [0, 1, 3], [2, 4])
    tokens = [int((batch["labels"][:, 1:] != -100).sum()) for batch in (first, second)]
    assert tokens[0] != tokens[1]
    divisors = window(first, second)
    task = AlignedTraining(parts.model, build_objective("none"), 5.0)
    loss = sum(task(batch, 0, 1, divisors)["loss"] for batch in (first, second))
    loss.backward()

    reference = reference_of(parts.model)
    expected = 0
    for batch, count in zip((first, second), tokens, strict=True):
        ids = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE_TOKEN_INDEX, HF_IMAGE_ID)
        mean = reference(
            input_ids=ids, attention_mask=batch["attention_mask"].long(), pixel_values=batch["pixel_values"],
            labels=batch["labels"],
        ).loss  # fmt: skip
        expected = expected + mean * count / sum(tokens)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    theirs = dict(reference.model.multi_modal_projector.named_parameters())
    for name, parameter in parts.model.projector.named_parameters():
        wanted = theirs[f"{HF_NAMES[name[0]]}{name[1:]}"].grad
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-7)


def test_pat_adds_weight_times_sum_over_count(parts) -> None:
    (batch,) = batches_of(parts, [0, 2, 3])
    objective = build_objective("pat", schedule="linear")
    task = AlignedTraining(parts.model, objective, 4.0)
    result = task(batch, step=3, total_steps=12)

    # By hand: every region's coverage-weighted mean patch against the mean embedding of its label's tokens.
    with torch.no_grad():
        patches = parts.model.project(parts.model.encode_images(batch["pixel_values"]))
        table = parts.model.llm.model.embed_tokens.weight
        total = 0.0
        for row in range(len(batch["region_image"])):
            share = batch["region_coverage"][row]
            vision = (share[:, None] * patches[batch["region_image"][row]]).sum(0) / share.sum()
            word = table[batch["region_label_ids"][row][batch["region_label_mask"][row]]].mean(0)
            total += 1 - torch.dot(vision, word) / (vision.norm() * word.norm())
    count = len(batch["region_image"])
    assert count == result["alignment_count"] == 6
    torch.testing.assert_close(result["alignment_sum"], total)
    caption = result["caption_sum"] / result["caption_count"]
    torch.testing.assert_close(result["loss"].detach(), caption + 4.0 * (3 / 12) * total / count)


def test_a_count_known_to_nobody_is_the_mean_over_micro_batches(parts) -> None:
    first, second = batches_of(parts, [0], [3])
    task = AlignedTraining(parts.model, build_objective("pat", schedule="constant"), 1.0)
    unknown = Divisors(window(first, second).caption, {"": None}, 2)
    for batch in (first, second):
        out = task(batch, 0, 1, unknown)
        expected = out["caption_sum"] / unknown.caption + out["alignment_sum"] / out["alignment_count"] / 2
        torch.testing.assert_close(out["loss"].detach(), expected)


def test_two_objectives_are_added_each_with_its_weight_and_divisor(parts) -> None:
    """pat by the count of the window, sea by its own pairs and the number of micro-batches."""
    arguments = {"sea": {"labels": "regions", "window": 0, "sampling": "best", "min_coverage": 0.0, "weight": 0.5}}
    plan = plan_objectives("pat+sea", arguments, weight=3.0, schedule=None)
    task = AlignedTraining(parts.model, build_planned(plan), {name: part.weight for name, part in plan.items()})
    batches = batches_of(parts, [0, 3], [2, 6])
    divisors = Divisors(window(*batches).caption, {"pat": torch.tensor(11.0), "sea": None}, 2)
    assert task.weights(2, 8) == {"pat": 0.75, "sea": 0.5}
    for batch in batches:
        torch.manual_seed(0)
        both = task(batch, 2, 8, divisors)
        torch.manual_seed(0)
        alone = AlignedTraining(parts.model, task.objective.parts["sea"], 1.0)(batch)
        pat = AlignedTraining(parts.model, task.objective.parts["pat"], 1.0)(batch)
        assert both["alignment_count@sea"] == alone["alignment_count"] > 2
        assert both["alignment_sum@sea"] == alone["alignment_sum"] and both["alignment_sum@pat"] == pat["alignment_sum"]
        sea = both["alignment_sum@sea"] / both["alignment_count@sea"] / 2
        expected = both["caption_sum"] / divisors.caption + 0.75 * both["alignment_sum@pat"] / 11 + 0.5 * sea
        torch.testing.assert_close(both["loss"].detach(), expected)
        assert {"alignment/accuracy@sea", "alignment/region_cosine@pat", "counter/skipped@sea"} <= both.keys()


class WithParameter(AlignmentObjective):
    """Has a parameter of its own and, at step 0 of the linear schedule, weight 0."""

    def __init__(self) -> None:
        super().__init__(schedule="linear")
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs) -> AlignmentLoss:
        total = inputs.patch_embeds.square().mean() * self.scale
        return AlignmentLoss(total, torch.ones(()))


def test_weight_zero_keeps_the_objectives_parameters_on_the_graph(parts) -> None:
    (batch,) = batches_of(parts, [0])
    objective = WithParameter()
    task = AlignedTraining(parts.model, objective, 5.0)
    task(batch, step=0, total_steps=10)["loss"].backward()
    assert objective.scale.grad is not None and objective.scale.grad.item() == 0.0
    objective.scale.grad = None
    task(batch, step=1, total_steps=10)["loss"].backward()
    assert objective.scale.grad.item() != 0.0


def test_a_batch_without_images_regions_or_answers_is_finite(parts, world) -> None:
    batch = {
        "input_ids": torch.tensor([[1, 5, 6]]), "labels": torch.full((1, 3), -100),
        "attention_mask": torch.ones(1, 3, dtype=torch.bool), "pixel_values": torch.zeros(0, 3, 32, 32),
        "image_sequence": torch.zeros(0, dtype=torch.int64), "sample_index": torch.zeros(1, dtype=torch.int64),
        "region_coverage": torch.zeros(0, 16), "region_image": torch.zeros(0, dtype=torch.int64),
        "region_label_ids": torch.zeros(0, 1, dtype=torch.int64),
        "region_label_mask": torch.zeros(0, 1, dtype=torch.bool),
    }  # fmt: skip
    task = AlignedTraining(parts.model, build_objective("pat", schedule="constant"), 1.0)
    out = task(batch)
    out["loss"].backward()
    assert out["loss"].item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in parts.model.projector.parameters())


def test_image_sequence_gives_each_image_its_own_caption(parts) -> None:
    seen = {}

    class Spy(AlignmentObjective):
        def forward(self, inputs) -> AlignmentLoss:
            seen["ids"], seen["mask"] = inputs.caption_ids, inputs.caption_mask
            return AlignmentLoss(self.anchor(inputs), torch.zeros(()))

    (batch,) = batches_of(parts, [3, 0])
    AlignedTraining(parts.model, Spy(), 1.0)(batch)
    for row in range(2):
        labels = batch["labels"][row]
        assert seen["ids"][row][seen["mask"][row]].tolist() == labels[labels != -100].tolist()
