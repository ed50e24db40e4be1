"""Regions as candidate words and candidate words as regions, against plain loops and by hand."""

from __future__ import annotations

import pytest
import torch

from llava_pat.alignment.labels import check_patch_words, regions_of_words, words_of_regions
from llava_pat.types import PatchRegions, PatchWords


def text(words: PatchWords | PatchRegions, row: int) -> tuple[int, ...]:
    ids, mask = (
        (words.word_ids, words.word_mask) if isinstance(words, PatchWords) else (words.label_ids, words.label_mask)
    )
    return tuple(ids[row][mask[row]].tolist())


def candidates(words: PatchWords, image: int, patch: int) -> list[tuple[tuple[int, ...], float]]:
    pairs = zip(words.words[image, patch].tolist(), words.scores[image, patch].tolist(), strict=True)
    return [(text(words, word), round(score, 6)) for word, score in pairs if word >= 0]


def regions(coverage, image, labels) -> PatchRegions:
    length = max((len(label) for label in labels), default=1)
    ids = torch.tensor([label + [0] * (length - len(label)) for label in labels], dtype=torch.int64).view(-1, length)
    mask = torch.tensor([[i < len(label) for i in range(length)] for label in labels], dtype=torch.bool)
    return PatchRegions(torch.tensor(coverage), torch.tensor(image), ids, mask.view(-1, length))


def test_words_of_regions_by_hand():
    """Image 0: red (twice), round; image 1: nothing; image 2: red."""
    given = regions(
        [[0.2, 1.0, 0.0], [0.6, 0.0, 0.0], [0.5, 0.4, 0.0], [0.0, 0.0, 0.7]], [0, 0, 0, 2], [[5], [5], [6, 7], [5]]
    )
    words = words_of_regions(given, 3, 0.3)
    assert words.words.shape == words.scores.shape == (3, 3, 2)
    found = [[candidates(words, image, patch) for patch in range(3)] for image in range(3)]
    red, green = (5,), (6, 7)
    assert found == [
        [[(red, 0.6), (green, 0.5)], [(red, 1.0), (green, 0.4)], []],
        [[], [], []],
        [[], [], [(red, 0.7)]],
    ]
    assert (words.scores[words.words < 0] == 0).all()


def test_no_regions_are_no_words():
    for given in (regions(torch.zeros(0, 4).tolist(), [], []), regions([[0.1] * 4], [1], [[5]])):
        given.coverage = given.coverage.view(-1, 4)
        given.image = given.image.long()
        words = words_of_regions(given, 2, 0.5)
        assert words.words.shape == (2, 4, 1) and (words.words == -1).all() and not words.scores.any()


def random_regions(seed: int) -> PatchRegions:
    generator = torch.Generator().manual_seed(seed)
    coverage = torch.rand(9, 6, generator=generator) * (torch.rand(9, 6, generator=generator) > 0.4)
    labels = torch.randint(1, 4, (9, 2), generator=generator)
    mask = torch.ones(9, 2, dtype=torch.bool)
    mask[:, 1] = torch.rand(9, generator=generator) > 0.5
    return PatchRegions(coverage, torch.randint(3, (9,), generator=generator), labels, mask)


@pytest.mark.parametrize("seed", range(4))
def test_words_of_regions_against_loops(seed):
    given = random_regions(seed)
    words = words_of_regions(given, 3, 0.25)
    for image in range(3):
        for patch in range(6):
            expected: dict[tuple, float] = {}
            for row in range(9):
                share = given.coverage[row, patch].item()
                if given.image[row] == image and share >= 0.25:
                    label = text(given, row)
                    expected[label] = max(expected.get(label, 0.0), share)
            found = candidates(words, image, patch)
            assert len(found) == len(expected) and dict(found) == pytest.approx(expected, abs=1e-5)
            scores = words.scores[image, patch].tolist()
            assert scores == sorted(scores, reverse=True)


def words(seed: int = 0) -> PatchWords:
    generator = torch.Generator().manual_seed(seed)
    found = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(2 * 4)]).view(2, 4, 3)
    scores = torch.rand(2, 4, 3, generator=generator).sort(-1, descending=True).values
    found[0, 1], found[1, 2, 1:] = -1, -1
    texts = torch.tensor([[1, 0], [2, 0], [1, 2], [3, 4], [5, 0]])
    return PatchWords(found, scores * (found >= 0), texts, texts > 0)


@pytest.mark.parametrize("top_n", [1, 2, 10])
def test_regions_of_words_against_loops(top_n):
    given = words()
    made = regions_of_words(given, top_n)
    expected: dict[tuple[int, tuple], list[float]] = {}
    for image in range(2):
        for patch in range(4):
            own = candidates(given, image, patch)[:top_n]
            for word, score in own:
                expected.setdefault((image, word), [0.0] * 4)[patch] += score / sum(s for _, s in own)
    found = {(int(made.image[r]), text(made, r)): made.coverage[r].tolist() for r in range(len(made.image))}
    assert found.keys() == expected.keys() and len(made.image) == len(expected)
    for key, row in expected.items():
        assert found[key] == pytest.approx(row, abs=1e-5)
    # each patch with candidates gives away exactly one whole
    whole = torch.zeros(2, 4).index_add_(0, made.image, made.coverage)
    assert torch.allclose(whole, (given.scores.sum(-1) > 0).float())


def test_no_words_are_no_regions():
    for table in (torch.zeros(0, 1, dtype=torch.int64), torch.ones(2, 1, dtype=torch.int64)):
        nothing = PatchWords(torch.full((2, 4, 1), -1), torch.zeros(2, 4, 1), table, table.bool())
        made = regions_of_words(nothing, 10)
        assert made.coverage.shape == (0, 4) and made.label_ids.shape == (0, 1) == made.label_mask.shape


def test_there_and_back():
    """Regions that overlap nowhere come back with their labels and patches."""
    given = regions([[0.6, 0.9, 0.0], [0.0, 0.0, 1.0]], [0, 0], [[5], [6, 7]])
    back = regions_of_words(words_of_regions(given, 1, 0.5), 10)
    assert {text(back, r): back.coverage[r].tolist() for r in range(2)} == {(5,): [1, 1, 0], (6, 7): [0, 0, 1]}


def test_words_of_another_grid_or_dtype_are_refused():
    given = words()
    with pytest.raises(ValueError, match=r"2 x 4 patches \(images x patches\), the tower gives 2 x 9"):
        check_patch_words(given, torch.zeros(2, 9, 3))
    given.scores = given.scores.bfloat16()
    with pytest.raises(ValueError, match="bfloat16, the contract says torch.float32"):
        check_patch_words(given, torch.zeros(2, 4, 3))
    check_patch_words(words(), torch.zeros(2, 4, 3))
