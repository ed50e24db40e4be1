from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_pat.models import patch_labels
from llava_pat.models.patch_labels import CENTRINGS, LabelSwitches, best_words, word_means


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("min_score", [0.0, 0.3])
def test_against_numpy(sign, centring, min_score, monkeypatch):
    """Patch by patch with a sort; in chunks of two patches, and with fewer candidates than n."""
    monkeypatch.setattr(patch_labels, "_SIMILARITIES_AT_ONCE", 13)
    patches, words = unit(3, 5, 4), unit(6, 4, seed=1)
    means = word_means(patches.flatten(0, 1).double().mean(0), words)
    similarity = patches.double().numpy() @ words.double().numpy().T
    np.testing.assert_allclose(means.numpy(), similarity.mean((0, 1)), atol=1e-7)
    if centring in ("words", "both"):
        similarity = similarity - similarity.mean(-1, keepdims=True)
    if centring in ("patches", "both"):
        similarity = similarity - similarity.mean((0, 1))  # of what is centred already: the mean of all is in neither
    switches = LabelSwitches(n=4, sign=sign, centring=centring, min_score=min_score)
    ids, scores = best_words(patches, words, switches, means)
    assert ids.shape == scores.shape == (3, 5, 4) and ids.dtype == torch.int64 and scores.dtype == torch.float32
    some_missing = False
    for image in range(3):
        for patch in range(5):
            values = sign * similarity[image, patch]
            best = [word for word in np.argsort(-values)[:4] if values[word] > min_score]
            some_missing |= len(best) < 4
            assert ids[image, patch].tolist() == best + [-1] * (4 - len(best))
            np.testing.assert_allclose(scores[image, patch, : len(best)].numpy(), values[best], atol=1e-6)
            assert not scores[image, patch, len(best) :].any()
    assert some_missing


def test_by_hand():
    """One patch along the first of three words at right angles, one against it."""
    words = torch.eye(3)
    patches = torch.tensor([[[1.0, 0, 0], [-1.0, 0, 0]]])
    ids, scores = best_words(patches, words, LabelSwitches(n=2, sign=1))
    assert ids.tolist() == [[[0, -1], [-1, -1]]] and scores.tolist() == [[[1.0, 0.0], [0.0, 0.0]]]
    ids, scores = best_words(patches, words, LabelSwitches(n=2, sign=-1))
    assert ids.tolist() == [[[-1, -1], [0, -1]]] and scores.tolist() == [[[0.0, 0.0], [1.0, 0.0]]]


def test_more_candidates_than_words_and_no_images():
    ids, scores = best_words(unit(1, 2, 4), unit(3, 4, seed=1), LabelSwitches(n=5, sign=1, centring="words"))
    assert ids.shape == (1, 2, 5) and bool((ids[..., 3:] == -1).all()) and not bool(scores[..., 3:].any())
    ids, scores = best_words(torch.zeros(0, 2, 4), unit(3, 4), LabelSwitches(n=5))
    assert ids.shape == scores.shape == (0, 2, 5)


def test_published_defaults():
    assert (LabelSwitches().n, LabelSwitches().sign, LabelSwitches().min_score) == (10, -1, 0.0)
    assert (LabelSwitches().centring, LabelSwitches().source) == ("none", "last")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"sign": 2}, "sign of the labels is 2; choose one of 1, -1"),
        ({"centring": "mean"}, "centring of the labels is 'mean'"),
        ({"source": "clip"}, "source of the labels is 'clip'; choose one of last, surgery"),
        ({"n": 0}, "n of the labels is 0"),
        ({"prompt": "a photo"}, r"prompt of the labels is 'a photo': it must hold \{\} once"),
        ({"min_score": -0.1}, "min_score of the labels is -0.1"),
    ],
)
def test_bad_switches(keywords, message):
    with pytest.raises(ValueError, match=message):
        LabelSwitches(**keywords)


def test_word_means_are_needed():
    with pytest.raises(ValueError, match="centring 'both' needs the words' means"):
        best_words(unit(1, 2, 4), unit(3, 4), LabelSwitches(centring="both"))
