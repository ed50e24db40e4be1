from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava_pat.data.geometry import CenterCrop, Pad, Squash
from llava_pat.data.patch_words import (
    FolderMeta,
    PatchWordsFolder,
    WordTokens,
    from_storage,
    load_meta,
    placement_of,
    same_switches,
    storage_type,
    to_storage,
)
from llava_pat.data.word_list import WordList
from llava_pat.types import DataError

COLOURS = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


@pytest.fixture
def folder(tmp_path):
    """Two images of 4 patches, three words, n = 2."""
    words = WordList({"red": 3, "blue": 2, "circle": 1}, {}, {}, {})
    there = tmp_path / "labels"
    there.mkdir()
    words.save(there / "word_list.json")
    FolderMeta("clip", "t", "x", words.sha256, "train.json", "d", {}, 4, 3, {"n": 2, "sign": 1}).save(there)
    (there / "images.json").write_text(json.dumps(["a.png", "b.png"]))
    (tmp_path / "a.png").write_bytes(b"12345")
    np.save(there / "image_bytes.npy", np.array([5, 7]))
    ids = torch.tensor([[[0, 1], [2, -1], [-1, -1], [1, 0]], [[2, 0], [-1, -1], [-1, -1], [0, 2]]])
    scores = torch.where(ids >= 0, torch.tensor([0.75, 0.5]), 0.0)
    for name, array in zip(("words", "scores"), to_storage(ids, scores, storage_type(3)), strict=True):
        np.save(there / f"{name}.npy", array)
    (there / "progress.json").write_text('{"rows": 2}')
    return SimpleNamespace(path=there, ids=ids, scores=scores, image=tmp_path / "a.png")


def test_rows_come_back(folder):
    labels = PatchWordsFolder(folder.path)
    assert len(labels) == 2 and "a.png" in labels and "c.png" not in labels
    for row, name in enumerate(("a.png", "b.png")):
        ids, scores = labels.row(name, "here")
        assert torch.equal(ids, folder.ids[row]) and ids.dtype == torch.int64
        assert torch.equal(scores, folder.scores[row]) and scores.dtype == torch.float32
    assert isinstance(labels._words, np.memmap) and labels._words.dtype == np.uint16


def test_storage_rounds_to_float16_and_drops_what_becomes_zero():
    ids = torch.tensor([[0, 70_000, 5], [3, -1, -1]])
    scores = torch.tensor([[0.3, 0.2, 1e-9], [0.1, 0.0, 0.0]])
    assert storage_type(65_534) == np.uint16 and storage_type(65_535) == np.uint32
    stored_ids, stored_scores = to_storage(ids, scores, storage_type(70_001))
    assert stored_scores.dtype == np.float16
    back_ids, back_scores = from_storage(stored_ids, stored_scores)
    assert back_ids.tolist() == [[0, 70_000, -1], [3, -1, -1]]
    torch.testing.assert_close(back_scores, scores.half().float(), rtol=0, atol=1e-7)


def test_bad_folders(folder):
    with pytest.raises(DataError, match="holds no meta.json, so it is no folder of patch labels; make the labels with"):
        load_meta(folder.path.parent)
    (folder.path / "progress.json").write_text('{"rows": 1}')
    with pytest.raises(DataError, match="1 of 2 images are labelled; run `bash scripts/label_patches.sh` again"):
        PatchWordsFolder(folder.path)
    (folder.path / "scores.npy").unlink()
    with pytest.raises(DataError, match="holds no scores.npy.*--patch_words online"):
        PatchWordsFolder(folder.path)
    meta = json.loads((folder.path / "meta.json").read_text())
    (folder.path / "meta.json").write_text(json.dumps(meta | {"format": 0}))
    with pytest.raises(DataError, match="format 0, this version reads 1"):
        load_meta(folder.path)
    (folder.path / "meta.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError, match="cannot be read"):
        load_meta(folder.path)


def test_another_word_list(folder):
    WordList({"red": 3, "circle": 1, "blue": 2}, {}, {}, {}).save(folder.path / "word_list.json")
    with pytest.raises(DataError, match="ids would stand for other words"):
        PatchWordsFolder(folder.path)


def test_files_of_another_shape(folder):
    np.save(folder.path / "scores.npy", np.zeros((2, 9, 2), np.float16))
    with pytest.raises(DataError, match=r"scores.npy: has shape \(2, 9, 2\) where meta.json says \(2, 4, 2\)"):
        PatchWordsFolder(folder.path)


@pytest.mark.parametrize("name", ["words.npy", "scores.npy", "image_bytes.npy", "images.json", "progress.json"])
def test_damaged_files_are_named(folder, name):
    """Empty, cut short, or something else: a copy that was broken off."""
    file = folder.path / name
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-3], b"3"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: .*make the labels with `bash scripts/label_patches.sh` again"):
            PatchWordsFolder(folder.path)
    file.write_bytes(whole)
    PatchWordsFolder(folder.path)


def test_sizes_of_fewer_images(folder):
    np.save(folder.path / "image_bytes.npy", np.array([5]))
    with pytest.raises(DataError, match=r"image_bytes.npy: has shape \(1,\) where meta.json says \(2,\)"):
        PatchWordsFolder(folder.path)


def test_words_of_a_larger_vocabulary(folder):
    """Files of the same shape from a folder with more words."""
    stored = np.load(folder.path / "words.npy")
    stored[1, 3, 0] = 3
    np.save(folder.path / "words.npy", stored)
    labels = PatchWordsFolder(folder.path)
    labels.row("a.png", "here")
    with pytest.raises(DataError, match="words.npy: has word 3 at image 'b.png', but its word list has 3 words"):
        labels.row("b.png", "here")


def test_images_of_another_corpus(folder):
    labels = PatchWordsFolder(folder.path)
    labels.check_image("a.png", folder.image, "here")
    with pytest.raises(DataError, match="here: image 'c.png' is not among the 2 images .*such as 'a.png'"):
        labels.check_image("c.png", folder.image, "here")
    with pytest.raises(DataError, match="here: .*has 5 bytes, but the file .* had 7: labels of another corpus"):
        labels.check_image("b.png", folder.image, "here")
    with pytest.raises(DataError, match="here: image 'c.png'"):
        labels.row("c.png", "here")


def test_switches(folder):
    meta = load_meta(folder.path)
    same_switches(meta, {"n": 2}, folder.path)
    with pytest.raises(DataError, match=r"other switches \(sign: 1 there, -1 asked for\)"):
        same_switches(meta, {"n": 2, "sign": -1}, folder.path)


def test_tokens(small_tokenizer):
    tokens = WordTokens.of(["red", "circle", "\u200b"], small_tokenizer)
    assert tokens.dropped == ("\u200b",) and tokens.ids[2] == ()
    assert small_tokenizer.decode(tokens.ids[1]).strip() == "circle"
    with pytest.raises(DataError, match=r"2 of the word list's 3 words \(such as .*\) have no tokens"):
        WordTokens.of(["red", "\u200b", "\u200c"], small_tokenizer)


def test_placement():
    """Of one grid and one crop, whatever the pixels; the rest that patches do not tile counts."""
    crop = placement_of(CenterCrop(32, **COLOURS), 8)
    assert crop == placement_of(CenterCrop(64, **COLOURS), 16)
    assert crop != placement_of(CenterCrop(32, **COLOURS, edge=36), 8)
    assert placement_of(CenterCrop(224, **COLOURS, edge=256), 14)["edge"] == pytest.approx(256 / 224)
    assert crop != placement_of(Pad(32, **COLOURS), 8)
    assert placement_of(Squash(384, **COLOURS), 14)["seen"] == pytest.approx(378 / 384)
