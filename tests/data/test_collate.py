from __future__ import annotations

import pytest
import torch

from llava_pat.data.collate import Collator, expand_images, patch_regions, patch_words
from llava_pat.data.patch_words import WordTokens
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX, DataError

X, IMG = IGNORE_INDEX, IMAGE_TOKEN_INDEX


def sample(index, ids, labels, images=0, regions=None, words=None):
    return {
        "input_ids": ids,
        "labels": labels,
        "pixel_values": [torch.full((3, 4, 4), float(index * 10 + k)) for k in range(images)],
        "regions": regions,
        "patch_words": words,
        "id": f"id-{index}",
        "index": index,
        "image_size": 4,
    }


def region(labels, patches=2):
    return torch.rand(len(labels), patches), labels


def test_by_hand():
    batch = Collator(num_patches=2, pad_token_id=7, model_max_length=99)(
        [
            sample(5, [1, IMG, 8, 9], [X, X, 8, 9], images=1),
            sample(3, [1, IMG, 4, IMG, 6, 2], [X, X, X, X, 6, 2], images=2),
        ]
    )
    assert batch["input_ids"].tolist() == [[1, IMG, IMG, 8, 9, 7, 7, 7], [1, IMG, IMG, 4, IMG, IMG, 6, 2]]
    assert batch["labels"].tolist() == [[X, X, X, 8, 9, X, X, X], [X, X, X, X, X, X, 6, 2]]
    assert batch["attention_mask"].tolist() == [[True] * 5 + [False] * 3, [True] * 8]
    assert batch["pixel_values"].shape == (3, 3, 4, 4)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [50, 30, 31]
    assert batch["image_sequence"].tolist() == [0, 1, 1]
    assert batch["sample_index"].tolist() == [5, 3]
    assert [batch[key].dtype for key in ("input_ids", "labels", "image_sequence", "sample_index")] == [torch.int64] * 4
    assert batch["attention_mask"].dtype == torch.bool
    assert patch_regions(batch) is None and not any(key.startswith("region") for key in batch)


def test_text_only_batch_has_an_empty_pixel_tensor():
    batch = Collator(2, 0, 99)([sample(0, [1, 5], [X, 5])])
    assert batch["pixel_values"].shape == (0, 3, 4, 4)
    assert batch["image_sequence"].shape == (0,) and batch["image_sequence"].dtype == torch.int64


def test_features_in_the_place_of_pixels():
    """Of two images, none and one; regions count images alike."""

    def cached(index, images, regions):
        made = sample(index, [IMG] * images + [3], [X] * images + [3], images, regions)
        del made["pixel_values"]
        return made | {"vision_features": torch.full((images, 2, 5), float(index), dtype=torch.bfloat16)}

    annotated = region([[4]])
    batch = Collator(2, 0, 99)([cached(0, 2, [None, annotated]), cached(1, 0, []), cached(2, 1, [None])])
    assert "pixel_values" not in batch and batch["vision_features"].dtype == torch.bfloat16
    assert batch["vision_features"][:, 0, 0].tolist() == [0, 0, 2]
    assert batch["image_sequence"].tolist() == [0, 0, 2] and batch["region_image"].tolist() == [1]
    assert Collator(2, 0, 99)([cached(1, 0, None)])["vision_features"].shape == (0, 2, 5)


def test_regions_of_a_mixed_batch():
    """Images 0-2 of the batch: one region, unannotated, two regions; a text-only sample in between."""
    first, third = region([[4]]), region([[5, 6], [7]])
    batch = Collator(2, 0, 99)(
        [
            sample(0, [IMG, 3], [X, 3], 1, [first]),
            sample(1, [3], [3], 0, []),
            sample(2, [IMG, IMG, 3], [X, X, 3], 2, [None, third]),
        ]
    )
    regions = patch_regions(batch)
    assert torch.equal(regions.coverage, torch.cat([first[0], third[0]]))
    assert regions.coverage.dtype == torch.float32
    assert regions.image.tolist() == [0, 2, 2]
    assert regions.label_ids.tolist() == [[4, 0], [5, 6], [7, 0]]
    assert regions.label_mask.tolist() == [[True, False], [True, True], [True, False]]


@pytest.mark.parametrize("entries", [[None], [(torch.zeros(0, 2), [])]])
def test_no_regions_in_the_batch_but_in_the_data_set(entries):
    regions = patch_regions(Collator(2, 0, 99)([sample(0, [IMG, 3], [X, 3], 1, entries)]))
    assert regions.coverage.shape == (0, 2) and regions.image.shape == (0,)
    assert regions.label_ids.shape == (0, 1) and regions.label_mask.shape == (0, 1)
    assert regions.image.dtype == regions.label_ids.dtype == torch.int64 and regions.label_mask.dtype == torch.bool


def test_another_patch_grid_is_refused():
    with pytest.raises(DataError, match=r"id-0.*lie on 3 patches but the vision tower has 2"):
        Collator(2, 0, 99)([sample(0, [IMG, 3], [X, 3], 1, [region([[4]], patches=3)])])


def test_truncation_is_after_expansion_and_counted():
    collator = Collator(num_patches=3, pad_token_id=0, model_max_length=5)
    batch = collator([sample(0, [1, IMG, 8, 9, 2], [X, X, 8, 9, 2], 1), sample(1, [1, 8], [X, 8])])
    assert batch["input_ids"].tolist() == [[1, IMG, IMG, IMG, 8], [1, 8, 0, 0, 0]]
    assert batch["labels"].tolist() == [[X, X, X, X, 8], [X, 8, X, X, X]]
    assert collator.truncated == 1


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_an_image_is_never_cut(limit):
    with pytest.raises(DataError, match=rf"record 4 \(id 'id-4'\).*positions 1 to 3.*model_max_length is {limit};"):
        Collator(3, 0, limit)([sample(4, [1, IMG, 8], [X, X, 8], 1)])
    assert expand_images([1, IMG, 8], [X, X, 8], 3, 4, "here") == ([1, IMG, IMG, IMG], [X] * 4, True)


TOKENS = WordTokens(ids=((10,), (11, 12), (), (13,)), dropped=("snowman",))


def test_patch_words_by_hand():
    """Two patches, n = 3; the third word of the list has no tokens. A text-only sample stands in between."""
    first = torch.tensor([[3, 2, 0], [2, -1, -1]]), torch.tensor([[0.5, 0.25, 0.125], [0.5, 0.0, 0.0]])
    second = torch.tensor([[-1, -1, -1], [1, 3, -1]]), torch.tensor([[0.0, 0.0, 0.0], [0.75, 0.5, 0.0]])
    batch = Collator(2, 0, 99, TOKENS)(
        [
            sample(0, [IMG, 3], [X, 3], 1, words=[first]),
            sample(1, [3], [3], 0, words=[]),
            sample(2, [IMG, 3], [X, 3], 1, words=[second]),
        ]
    )
    words = patch_words(batch)
    assert words.word_ids.tolist() == [[10, 0], [11, 12], [13, 0]]
    assert words.word_mask.tolist() == [[True, False], [True, True], [True, False]]
    assert words.words.tolist() == [[[2, 0, -1], [-1, -1, -1]], [[-1, -1, -1], [1, 2, -1]]]
    assert words.scores.tolist() == [[[0.5, 0.125, 0.0], [0.0] * 3], [[0.0] * 3, [0.75, 0.5, 0.0]]]
    assert [tensor.dtype for tensor in vars(words).values()] == [torch.int64, torch.float32, torch.int64, torch.bool]


def test_patch_words_of_a_batch_without_images_or_candidates():
    batch = Collator(2, 0, 99, TOKENS)([sample(1, [3], [3], 0, words=[])])
    assert patch_words(batch).words.shape == (0, 2, 1) and patch_words(batch).word_ids.shape == (0, 1)
    nothing = torch.full((2, 3), -1), torch.zeros(2, 3)
    words = patch_words(Collator(2, 0, 99, TOKENS)([sample(0, [IMG, 3], [X, 3], 1, words=[nothing])]))
    assert words.words.shape == (1, 2, 3) and bool((words.words == -1).all()) and not bool(words.scores.any())
    assert words.word_ids.shape == words.word_mask.shape == (0, 1)


def test_no_patch_words_without_a_label_folder():
    batch = Collator(2, 0, 99)([sample(0, [IMG, 3], [X, 3], 1)])
    assert patch_words(batch) is None and not any(key.startswith("patch_word") for key in batch)


def test_patch_words_of_another_grid():
    three = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    with pytest.raises(DataError, match="labels are of 3 patches but the vision tower has 2"):
        Collator(2, 0, 99, TOKENS)([sample(0, [IMG, 3], [X, 3], 1, words=[three])])
