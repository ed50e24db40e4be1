"""SEA: what becomes a pair, what it is worth, and what is skipped; by hand and against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llava_pat.alignment import accepted_keywords, build_objective, find_objective
from llava_pat.alignment.labels import words_of_regions
from llava_pat.alignment.sea import one_per_window
from llava_pat.types import AlignmentInputs, PatchRegions, PatchWords

D = 5
TABLE = torch.randn(30, D, generator=torch.Generator().manual_seed(0))
ALL = {"window": 0, "sampling": "best", "dedup": "mask"}  # no random choice


def make(words, scores, texts, patches=None, regions=None) -> AlignmentInputs:
    """words, scores: [I][N][n] lists; texts: token lists of the word table."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[i < len(text) for i in range(longest)] for text in texts])
    given = PatchWords(torch.tensor(words), torch.tensor(scores), ids, mask)
    images, count = given.words.shape[:2]
    if patches is None:
        patches = torch.randn(images, count, D, generator=torch.Generator().manual_seed(1))
    patches = patches.clone().requires_grad_()
    caption = torch.zeros(images, 1, dtype=torch.int64)
    return AlignmentInputs(patches.detach(), patches, lambda ids: TABLE[ids], caption, caption.bool(), regions, given)


def many(count: int, words=(0,), scores=(1.0,)) -> AlignmentInputs:
    """One image of `count` patches with the same candidates."""
    return make([[list(words)] * count], [[list(scores)] * count], [[k + 1] for k in range(max(words) + 1)])


def word(*tokens: int) -> torch.Tensor:
    return F.normalize(TABLE[list(tokens)].mean(0), dim=-1)


def infonce(patches: torch.Tensor, targets: torch.Tensor, names: list, scale: float) -> tuple[float, int]:
    scores = scale * F.normalize(patches, dim=-1) @ targets.T
    total, right = 0.0, 0
    for i in range(len(names)):
        rivals = [j for j in range(len(names)) if j == i or names[j] != names[i]]
        for row in (scores[i], scores[:, i]):
            total += (row[rivals].logsumexp(0) - row[i]).item() / 2
        right += all(scores[i, i] > scores[i, j] for j in rivals if j != i)
    return total, right


def test_every_patch_with_its_best_word_by_hand():
    """Four patches: words 1 and (2, 3) and 1 again; the last has no candidate."""
    inputs = make(
        [[[0, 1], [1, 0], [0, -1], [-1, -1]]], [[[0.9, 0.1], [0.5, 0.4], [0.2, 0.0], [0.0, 0.0]]], [[1], [2, 3]]
    )
    loss = build_objective("sea", **ALL, init_log_scale=1.0)(inputs)
    targets = torch.stack([word(1), word(2, 3), word(1)])
    total, right = infonce(inputs.patch_embeds[0, :3].detach(), targets, ["a", "b", "a"], math.e)
    assert loss.total.item() == pytest.approx(total, abs=1e-5)
    assert loss.count == loss.divisor == 3 and loss.metrics["accuracy"] == right
    assert loss.metrics["scale"].item() == pytest.approx(3 * math.e, rel=1e-6)
    assert {name: value.item() for name, value in loss.counters.items()} == {"candidates": 3, "skipped": 0}
    loss.total.backward()
    moved = inputs.patch_embeds.grad[0].abs().sum(-1) > 0
    assert moved.tolist() == [True, True, True, False]


def test_the_value_does_not_depend_on_lengths_of_patches():
    inputs = make([[[0], [1]]], [[[1.0], [1.0]]], [[1], [2]])
    objective = build_objective("sea", **ALL)
    longer = replace(inputs, patch_embeds=inputs.patch_embeds * 17)
    assert objective(longer).total.item() == pytest.approx(objective(inputs).total.item(), abs=1e-5)


def test_mean_takes_all_candidates_by_score():
    inputs = make([[[0, 1], [2, -1]]], [[[0.6, 0.2], [0.3, 0.0]]], [[1], [2, 3], [4]])
    loss = build_objective("sea", **{**ALL, "sampling": "mean"})(inputs)
    mixed = F.normalize(0.75 * word(1) + 0.25 * word(2, 3), dim=-1)
    total, _ = infonce(inputs.patch_embeds[0].detach(), torch.stack([mixed, word(4)]), ["a", "b"], 1.0)
    assert loss.total.item() == pytest.approx(total, abs=1e-5)


def test_top_n_cuts_candidates():
    inputs = many(400, (0, 1, 2), (0.5, 0.3, 0.2))
    inputs.patch_words.words[0, 0, 0] = 2  # a second word for the contrast
    objective = build_objective("sea", window=0, dedup="mask", top_n=1)
    picked = objective._draw(objective._candidates(inputs))[2]
    assert set(picked[1:].flatten().tolist()) == {0}


def test_weighted_draws_follow_the_scores():
    """Plain shares, not a softmax: 3 to 1. Four standard deviations of 4,000 draws are 0.027."""
    torch.manual_seed(0)
    objective = build_objective("sea", window=0)
    picked = objective._draw(many(4000, (0, 1), (0.6, 0.2)).patch_words)[2]
    assert (picked == 0).float().mean().item() == pytest.approx(0.75, abs=0.027)


def test_repeated_words_keep_one_pair_each_at_random():
    torch.manual_seed(0)
    objective = build_objective("sea", window=0, sampling="best", dedup="one")
    seen = set()
    for _ in range(60):
        inputs = make([[[0], [1], [0], [0]]], [[[1.0]] * 4], [[1], [2]])
        loss = objective(inputs)
        assert loss.count == 2 and loss.counters["candidates"] == 4
        loss.total.backward()
        moved = (inputs.patch_embeds.grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist()
        assert len(moved) == 2 and 1 in moved
        seen |= set(moved)
    assert seen == {0, 1, 2, 3}


def test_one_patch_of_each_window():
    eligible = torch.ones(2, 16, dtype=torch.bool)
    eligible[0, [0, 1, 4, 5]] = False  # the first window of image 0
    eligible[1, [0, 1, 4]] = False  # one left in it on image 1
    torch.manual_seed(0)
    seen = torch.zeros(2, 16)
    for _ in range(400):
        found = one_per_window(eligible, 2)
        per_window = found.view(2, 2, 2, 2, 2).sum((2, 4))  # image, row and column of the window
        assert per_window.tolist() == [[[0, 1], [1, 1]], [[1, 1], [1, 1]]]
        seen += found
    assert seen[1, 5] == 400 and not seen[~eligible].any()
    free = seen[:, [2, 3, 6, 7, 8, 9, 12, 13]] / 400  # of four each: 0.25, and 5 standard deviations are 0.11
    assert (free - 0.25).abs().max() < 0.11


def test_windows_at_the_rim_are_smaller():
    found = one_per_window(torch.ones(1, 25, dtype=torch.bool), 2).view(5, 5)
    assert found.sum() == 9 and found[4, 4] and found[4, :2].sum() == 1
    assert one_per_window(torch.ones(1, 9, dtype=torch.bool), 5).sum() == 1


def test_windows_need_a_square_grid():
    with pytest.raises(ValueError, match="window 2 needs a square grid of patches, the tower gives 17; give window 0"):
        one_per_window(torch.ones(1, 17, dtype=torch.bool), 2)


def test_window_zero_and_one_take_every_patch():
    for window in (0, 1):
        inputs = many(17)
        assert build_objective("sea", window=window)(inputs).counters["candidates"] == 17


@pytest.mark.parametrize("dedup", ["one", "mask"])
def test_fewer_than_two_words_are_skipped_and_counted(dedup):
    """Two rows of the table with the same tokens are one word."""
    inputs = make([[[0], [1], [0]]], [[[1.0]] * 3], [[4, 5], [4, 5]])
    objective = build_objective("sea", **{**ALL, "dedup": dedup})
    loss = objective(inputs)
    loss.total.backward()
    assert loss.total == loss.count == loss.divisor == 0 and loss.counters["skipped"] == 1
    assert loss.counters["candidates"] == 3
    assert not inputs.patch_embeds.grad.any() and objective.log_scale.grad == 0


def test_masks_give_the_words_that_the_regions_have():
    generator = torch.Generator().manual_seed(2)
    coverage = torch.rand(4, 9, generator=generator)
    labels = torch.tensor([[1, 0], [2, 3], [4, 0], [5, 6]])
    regions = PatchRegions(coverage, torch.tensor([0, 0, 1, 1]), labels, labels > 0)
    inputs = make([[[0]] * 9] * 2, [[[1.0]] * 9] * 2, [[1]], regions=regions)
    by_masks = build_objective("sea", **ALL, labels="regions", min_coverage=0.5)(inputs)
    by_words = build_objective("sea", **ALL)(replace(inputs, patch_words=words_of_regions(regions, 2, 0.5)))
    assert by_masks.count > 2 and torch.equal(by_masks.total, by_words.total)
    # by hand: the label of the larger coverage of each patch, where that is a half or more
    best, row = coverage.view(2, 2, 9).max(1)
    image, patch = (best >= 0.5).nonzero(as_tuple=True)
    names = (row[image, patch] + 2 * image).tolist()
    targets = torch.stack([word(*labels[name][labels[name] > 0].tolist()) for name in names])
    total, _ = infonce(inputs.patch_embeds[image, patch].detach(), targets, names, 1.0)
    assert by_masks.count == len(names) and by_masks.total.item() == pytest.approx(total, abs=1e-4)


def test_the_scale_is_cut_at_its_limit_and_can_come_back():
    objective = build_objective("sea", init_log_scale=math.log(100))
    with torch.no_grad():
        objective.log_scale += 3
    scale = objective.scale()
    assert scale.item() == pytest.approx(100, rel=1e-5)
    scale.backward()
    assert objective.log_scale.grad.item() == pytest.approx(100, rel=1e-5)


def test_a_fixed_scale_does_not_train():
    inputs = make([[[0], [1]]], [[[1.0], [1.0]]], [[1], [2]])
    objective = build_objective("sea", **ALL, learn_temperature=False)
    objective(inputs).total.backward()
    assert objective.log_scale.grad is None and "log_scale" in objective.state_dict()


@pytest.mark.parametrize("keywords", [{}, {"dedup": "mask", "loss": "sdm"}, {"sampling": "mean", "window": 0}])
def test_descent_brings_patches_to_their_words(keywords):
    """Sixteen patches, four words: after it every patch is nearest to a word of its own, and the scale has grown."""
    torch.manual_seed(0)
    inputs = make([[[k // 4] for k in range(16)]], [[[1.0]] * 16], [[1], [2, 3], [4], [5]])
    objective = build_objective("sea", **keywords)
    free = inputs.patch_embeds.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([free, objective.log_scale], lr=0.05)
    for _ in range(150):
        loss = objective(replace(inputs, patch_embeds=free))
        optimizer.zero_grad()
        (loss.total / loss.divisor).backward()
        optimizer.step()
    nearest = (F.normalize(free[0], dim=-1) @ torch.stack([word(1), word(2, 3), word(4), word(5)]).T).argmax(1)
    assert nearest.tolist() == [k // 4 for k in range(16)]
    assert loss.metrics["accuracy"] == loss.count and objective.log_scale > 0.5


def test_the_same_random_state_gives_the_same_choices():
    inputs, objective = many(36, (0, 1, 2), (0.5, 0.3, 0.2)), build_objective("sea")
    state = torch.get_rng_state()
    first = objective(inputs).total
    torch.set_rng_state(state)
    assert torch.equal(objective(inputs).total, first)


def test_the_papers_choices_are_the_defaults():
    defaults = accepted_keywords(find_objective("sea"))
    assert (defaults["top_n"], defaults["window"], defaults["sampling"], defaults["dedup"]) == (
        10,
        2,
        "weighted",
        "one",
    )
    assert (defaults["loss"], defaults["init_log_scale"], defaults["schedule"]) == ("infonce", 0.0, "constant")


def test_what_it_requires_follows_the_labels():
    assert build_objective("sea").requires == {"patch_words"}
    assert build_objective("sea", labels="regions").requires == {"regions"}
    with pytest.raises(
        ValueError, match="needs patch_words, and the run provides captions, regions.*--patch_words_path"
    ):
        build_objective("sea").check_requirements({"captions", "regions"})


def test_labels_of_another_grid_are_refused():
    inputs = many(9)
    with pytest.raises(ValueError, match="1 x 9 patches .*the tower gives 1 x 16"):
        build_objective("sea")(replace(inputs, patch_embeds=torch.zeros(1, 16, D)))


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"top_n": 0}, "top_n is 0"),
        ({"window": -1}, "window is -1"),
        ({"min_coverage": 2.0}, r"min_coverage is 2.0; a share of a patch lies in \[0, 1\]"),
        ({"init_log_scale": 5.0}, "init_log_scale is 5.0, max_scale 100.0"),
        ({"init_log_scale": float("nan")}, "init_log_scale is nan"),
        ({"max_scale": 0.0}, "max_scale 0.0"),
        ({"sampling": "worst"}, "sampling of .*'sea' is 'worst'"),
        ({"labels": "boxes"}, "labels of .*'sea' is 'boxes'"),
    ],
)
def test_wrong_switches_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_objective("sea", **keywords)
