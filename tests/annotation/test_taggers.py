"""Taggers that look: CLIP against its own forward, Florence-2's answers, RAM's call."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.taggers.clip import ClipOptions, ClipTagger
from llava_pat.annotation.taggers.florence2 import Florence2Tagger, Florence2TaggerOptions
from llava_pat.annotation.taggers.ram import RamOptions, RamTagger
from llava_pat.types import DataError
from tests.annotation import tiny_models

PLACE = Placement()


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.save_clip(tmp_path_factory.mktemp("clip")))


def test_clip_is_its_own_forward(clip_folder: str, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# a note\ncat\ndog\n\ncat\nfire hydrant\nкот\n", encoding="utf-8")
    tagger = ClipTagger(ClipOptions(str(words), clip_folder, top_k=2, min_probability=0.0), PLACE)
    assert tagger.labels == ["cat", "dog", "fire hydrant", "кот"]
    images = [picture(40, 60), picture(60, 40, 1)]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    texts = tokenizer([f"a photo of a {word}." for word in tagger.labels], padding=True, return_tensors="pt")
    pixels = tagger._processor(images=images, return_tensors="pt")
    with torch.inference_mode():
        theirs = tagger._model(**texts, **pixels).logits_per_image.softmax(-1)
    ours = tagger.probabilities(images)
    assert torch.allclose(ours, theirs, atol=1e-5)
    expected = [[tagger.labels[i] for i in row.topk(2).indices] for row in theirs]
    assert tagger.tag(images, ["", ""]) == expected
    picky = ClipTagger(ClipOptions(str(words), clip_folder, min_probability=0.9999), PLACE)
    assert picky.tag(images, ["", ""]) == [
        [w for w, p in zip(picky.labels, row, strict=True) if p > 0.9999] for row in ours
    ]


@pytest.mark.parametrize(
    ("content", "message"), [("# only\n\n", "holds no label"), (b"\xff\xfe\x00", "cannot be read")]
)
def test_wrong_vocabularies(tmp_path: Path, content, message: str) -> None:
    words = tmp_path / "words.txt"
    words.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        ClipTagger(ClipOptions(str(words)), PLACE)
    with pytest.raises(DataError, match="vocabulary is not given"):
        ClipTagger(ClipOptions(), PLACE)
    with pytest.raises(DataError, match="has no {}"):
        ClipOptions(template="a photo")


def test_florence2s_objects_and_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tiny_models.save_florence2(tmp_path))
    images = [picture(40, 60), picture(30, 30)]

    def say(tagger: Florence2Tagger, answers: list[str]) -> None:
        tokenizer = tagger._florence.processor.tokenizer
        ids = tokenizer([f"</s><s>{text}</s>" for text in answers], add_special_tokens=False, padding=True)["input_ids"]
        monkeypatch.setattr(tagger._florence._model, "generate", lambda **given: torch.tensor(ids))

    tagger = Florence2Tagger(Florence2TaggerOptions(folder), PLACE)
    say(tagger, ["cat<loc_1><loc_1><loc_9><loc_9>dog<loc_1><loc_1><loc_9><loc_9>cat<loc_5><loc_5><loc_9><loc_9>", ""])
    assert tagger.tag(images, ["", ""]) == [["cat", "dog"], []]
    tagger = Florence2Tagger(Florence2TaggerOptions(folder, task="<CAPTION>"), PLACE)
    say(tagger, ["A black cat sitting on a sofa.", "A photo."])
    assert tagger.tag(images, ["", ""]) == [["black cat", "sofa"], []]
    with pytest.raises(DataError, match="task is '<OCR>'"):
        Florence2TaggerOptions(task="<OCR>")


def test_ram_that_is_not_installed_is_one_line() -> None:
    with pytest.raises(DataError, match="pip install git.*recognize-anything"):
        RamTagger(RamOptions("x.pth"), PLACE)


def test_ram_as_its_authors_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(torch.nn.Module):
        pass

    package, parts, given = ModuleType("ram"), ModuleType("ram.models"), {}
    parts.ram_plus = lambda **named: given.update(named) or Model()
    package.get_transform = lambda image_size: lambda image: torch.zeros(3, image_size, image_size)
    package.inference_ram = lambda pixels, model: (f"cat | fire hydrant | {pixels.shape[0]}", "猫")
    monkeypatch.setitem(sys.modules, "ram", package)
    monkeypatch.setitem(sys.modules, "ram.models", parts)
    monkeypatch.setattr("llava_pat.annotation.taggers.ram.require_package", lambda *given: None)
    tagger = RamTagger(RamOptions("x.pth"), PLACE)
    assert given == {"pretrained": "x.pth", "image_size": 384, "vit": "swin_l"}
    assert tagger.tag([picture(9, 9)], [""]) == [["cat", "fire hydrant", "1"]]
    with pytest.raises(DataError, match="checkpoint is not given"):
        RamTagger(RamOptions(), PLACE)
