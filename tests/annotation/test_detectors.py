"""Detectors on tiny models: against transformers' own post-processing, and coordinates by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, GroundingDinoProcessor, Owlv2Processor

from llava_pat.annotation.detectors import florence2, grounding_dino
from llava_pat.annotation.detectors.grounding_dino import GroundingDino, GroundingDinoOptions
from llava_pat.annotation.detectors.grounding_prompt import build_prompts, score_labels
from llava_pat.annotation.detectors.owlv2 import Owlv2, Owlv2Options
from llava_pat.annotation.pretrained import Placement
from llava_pat.types import DataError
from tests.annotation import tiny_models

PLACE = Placement()


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.save_grounding_dino(tmp_path_factory.mktemp("dino")))


@pytest.fixture(scope="module")
def owl_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.save_owlv2(tmp_path_factory.mktemp("owl")))


@pytest.fixture(scope="module")
def florence_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.save_florence2(tmp_path_factory.mktemp("florence")))


# --- Grounding DINO's prompts


def test_tokens_of_every_label() -> None:
    tokenizer = tiny_models.bert_tokenizer()
    labels = ["red circle", "Fire hydrant", "car", "St. Bernard", "狗"]
    (prompt,), unknown = build_prompts(labels, tokenizer, 64)
    assert prompt.text == "red circle. fire hydrant. car. st bernard. 狗." and not unknown
    assert prompt.labels == tuple(labels), "as they were asked for"
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(prompt.text)["input_ids"])
    own = [[pieces[i] for i in row.nonzero()[:, 0]] for row in prompt.tokens]
    assert own == [["red", "circle"], ["fire", "hyd", "##rant"], ["car"], ["st", "bernard"], ["狗"]]
    stops = [i for i, piece in enumerate(pieces) if piece in (".", "[CLS]", "[SEP]")]
    assert not prompt.tokens[:, stops].any() and prompt.tokens.sum(0).max() == 1


def test_labels_that_the_model_cannot_tell_apart_are_asked_once() -> None:
    (prompt,), unknown = build_prompts(
        ["Red circle", "red  circle.", "🦕", "", "???", "car"], tiny_models.bert_tokenizer(), 64
    )
    assert prompt.labels == ("Red circle", "car") and unknown == ["🦕", "", "???"]


def test_long_lists_are_split_and_no_label_is_cut() -> None:
    tokenizer = tiny_models.bert_tokenizer()
    labels = ["red circle", "fire hydrant", "blue square", "car", "green triangle", "red " * 30]
    prompts, unknown = build_prompts(labels, tokenizer, 10)
    assert [prompt.labels for prompt in prompts] == [tuple(labels[:2]), tuple(labels[2:5])]
    assert all(len(tokenizer(prompt.text)["input_ids"]) <= 10 for prompt in prompts)
    assert unknown == ["red " * 30], "longer than a prompt"


@pytest.mark.parametrize(
    ("lit", "theirs", "ours"),
    [
        ({"##rant": 2.0}, "##rant", "fire hydrant"),  # a piece of a label
        ({"circle": 1.0, "car": 2.0}, "circle car", "car"),  # two labels
        ({"red": 1.0, "circle": 0.5}, "red circle", "red circle"),
        ({".": 3.0, "car": 1.0}, ". car", "car"),  # the full stop is nobody's
    ],
)
def test_a_box_gets_a_label_that_was_asked_for(lit: dict[str, float], theirs: str, ours: str) -> None:
    tokenizer = tiny_models.bert_tokenizer()
    (prompt,), _ = build_prompts(["red circle", "fire hydrant", "car"], tokenizer, 64)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(prompt.text)["input_ids"])
    logits = torch.full((1, 1, 24), -torch.inf)
    logits[..., : len(pieces)] = -5.0
    for piece, value in lit.items():
        logits[..., pieces.index(piece)] = value
    outputs = SimpleNamespace(logits=logits, pred_boxes=torch.full((1, 1, 4), 0.5))
    processor = SimpleNamespace(batch_decode=tokenizer.batch_decode)
    (result,) = GroundingDinoProcessor.post_process_grounded_object_detection(
        processor, outputs, torch.tensor([tokenizer(prompt.text)["input_ids"]]), 0.35, 0.25
    )
    assert result["text_labels"][0].replace(" ##", "##") in (theirs, theirs.replace("##", "")), (
        "the trap is still there"
    )
    scores = score_labels(logits[0], prompt)
    assert scores.shape == (1, 3) and prompt.labels[scores.argmax()] == ours


# --- Grounding DINO


def test_boxes_and_scores_are_those_of_transformers(dino_folder: str) -> None:
    detector = GroundingDino(GroundingDinoOptions(dino_folder, box_threshold=0.0), PLACE)
    image, labels = picture(48, 80), ["red circle", "fire hydrant", "car"]
    (ours,) = detector.detect([image], [labels])
    processor = GroundingDinoProcessor(detector._processor, detector._tokenizer)
    inputs = processor(images=image, text=[labels], return_tensors="pt")
    with torch.inference_mode():
        outputs = detector._model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], 0.0, 0.25, target_sizes=[(48, 80)]
    )
    assert len(ours.found) == len(theirs["boxes"]) == 10
    assert torch.allclose(torch.tensor([one.box for one in ours.found]), theirs["boxes"], atol=1e-4)
    pieces = detector._tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    words = [piece not in (".", "[CLS]", "[SEP]") for piece in pieces]
    best_is_word = [words[int(row.argmax())] for row in outputs.logits[0]]
    assert sum(best_is_word) >= 3, "a test of something"
    for one, score, comparable in zip(ours.found, theirs["scores"].tolist(), best_is_word, strict=True):
        assert one.score == pytest.approx(score, abs=1e-6) if comparable else one.score < score


def test_mm_grounding_dino_is_taken_as_well(tmp_path: Path) -> None:
    folder = str(tiny_models.save_grounding_dino(tmp_path, mm=True))
    (found,) = GroundingDino(GroundingDinoOptions(folder, box_threshold=0.0), PLACE).detect(
        [picture(48, 80)], [["car"]]
    )
    assert len(found.found) == 10 and {one.label for one in found.found} == {"car"}


def test_a_batch_is_its_images_one_by_one(dino_folder: str) -> None:
    detector = GroundingDino(GroundingDinoOptions(dino_folder, box_threshold=0.05, batch_size=4), PLACE)
    images = [picture(48, 80), picture(40, 80, 1), picture(48, 80, 2)]
    labels = [
        ["red circle", "car"],
        [],
        ["blue square", "fire hydrant", "green triangle", "st bernard", "circle", "狗"],
    ]
    together = detector.detect(images, labels)
    assert together[1].found == []
    for image, wanted, both in zip(images, labels, together, strict=True):
        (alone,) = detector.detect([image], [wanted])
        assert {one.label for one in both.found} <= set(wanted)
        assert len(alone.found) == len(both.found)
        for left, right in zip(alone.found, both.found, strict=True):
            assert left.box == pytest.approx(right.box, abs=1e-2) and left.score == pytest.approx(right.score, abs=1e-4)


def test_pixels_of_a_box_by_hand(dino_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = GroundingDino(GroundingDinoOptions(dino_folder), PLACE)
    logits = torch.full((1, 2, 24), -9.0)
    logits[0, 1, 3 + 1] = 2.0  # [CLS] red circle . car
    boxes = torch.tensor([[[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 0.2]]])
    monkeypatch.setattr(detector, "_run", lambda images, texts: (logits, boxes))
    (found,) = detector.detect([picture(100, 40)], [["red circle", "car", "🦕"]])
    (one,) = found.found
    assert (
        one.label == "car"
        and one.box == pytest.approx((0, 40, 20, 60))
        and one.score == pytest.approx(0.8808, abs=1e-4)
    )
    assert found.left_out == Counter({grounding_dino.UNKNOWN: 1})


@pytest.mark.parametrize("kind", [GroundingDino, Owlv2])
def test_half_precision_keeps_boxes_fine(kind: type, dino_folder: str, owl_folder: str) -> None:
    """bfloat16 weights would give whole 256ths of the image."""
    dino = kind is GroundingDino
    options = GroundingDinoOptions(dino_folder, box_threshold=0.0) if dino else Owlv2Options(owl_folder, threshold=0.0)
    (found,) = kind(options, Placement(dtype="bfloat16")).detect([picture(48, 80)], [["red circle", "car"]])
    shares = np.array([[box[0] / 80, box[2] / 80] for box in (one.box for one in found.found)]) * 512
    assert np.isfinite(shares).all() and (np.abs(shares - shares.round()) > 1e-3).any()


def test_no_labels_and_no_images(dino_folder: str) -> None:
    detector = GroundingDino(GroundingDinoOptions(dino_folder), PLACE)
    assert detector.detect([], []) == [] and detector.detect([picture(20, 20)], [[]])[0].found == []


def test_another_architecture_is_refused(owl_folder: str) -> None:
    with pytest.raises(DataError, match="says model_type 'owlv2', not grounding-dino or mm-grounding-dino"):
        GroundingDino(GroundingDinoOptions(owl_folder), PLACE)


def test_missing_weights_and_folders_are_one_line(dino_folder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="detector nowhere/model: cannot be loaded") as caught:
        GroundingDino(GroundingDinoOptions("nowhere/model"), PLACE)
    assert "\n" not in str(caught.value)
    for file in Path(dino_folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(key for key in weights if "text_projection" in key)
    save_file(
        {key: value for key, value in weights.items() if key != gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(DataError, match="1 missing keys.*text_projection"):
        GroundingDino(GroundingDinoOptions(str(tmp_path)), PLACE)


# --- OWLv2


def test_owlv2_is_transformers(owl_folder: str) -> None:
    detector = Owlv2(Owlv2Options(owl_folder, threshold=0.3), PLACE)
    image, labels = picture(48, 80), ["red circle", "car"]
    (ours,) = detector.detect([image], [labels])
    processor = Owlv2Processor(detector._processor, detector._tokenizer)
    prompts = [[f"a photo of a {label}" for label in labels]]
    inputs = processor(text=prompts, images=image, return_tensors="pt", truncation=True, max_length=16)
    with torch.inference_mode():
        outputs = detector._model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(outputs, 0.3, [(48, 80)], [labels])
    assert len(ours.found) == len(theirs["boxes"]) > 3
    assert [one.label for one in ours.found] == theirs["text_labels"]
    assert torch.allclose(torch.tensor([one.score for one in ours.found]), theirs["scores"], atol=1e-5)
    assert torch.allclose(torch.tensor([one.box for one in ours.found]), theirs["boxes"], atol=1e-3)


def test_owlv2_answers_with_no_padding_query(owl_folder: str) -> None:
    """Images of one batch have different numbers of labels; transformers' processor fills up with " ", a query."""
    detector = Owlv2(Owlv2Options(owl_folder, threshold=0.0), PLACE)
    images, labels = [picture(48, 80), picture(70, 50, 1), picture(20, 20)], [["car"], ["red", "blue", "狗 ü"], []]
    together = detector.detect(images, labels)
    assert together[2].found == []
    for image, wanted, both in zip(images, labels, together, strict=True):
        (alone,) = detector.detect([image], [wanted])
        assert [one.label for one in alone.found] == [one.label for one in both.found]
        for left, right in zip(alone.found, both.found, strict=True):
            assert left.box == pytest.approx(right.box, abs=1e-3) and left.score == pytest.approx(right.score, abs=1e-5)


def test_owlv2_pixels_by_hand(owl_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Owlv2(Owlv2Options(owl_folder), PLACE)
    # a wide image fills the upper half of its square: the whole image is cx 0.5, cy 0.25, w 1, h 0.5
    boxes = torch.tensor([[[0.5, 0.25, 1.0, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    logits = torch.tensor([[[0.0, 1.0, 99.0], [-9.0, -9.0, 99.0]]])  # the third column is another image's label
    monkeypatch.setattr(detector, "_run", lambda images, labels: (logits, boxes))
    ((one,),) = [found.found for found in detector.detect([picture(50, 100)], [["a", "b"]])]
    assert (
        one.label == "b" and one.box == pytest.approx((0, 0, 100, 50)) and one.score == pytest.approx(0.7311, abs=1e-4)
    )


def test_owlv2_without_scipy_is_one_line(owl_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs the package scipy: pip install scipy"):
        Owlv2(Owlv2Options(owl_folder), PLACE)


# --- Florence-2


def speak(detector, monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> list[str]:
    """Florence-2's answers; the prompts that it was given are returned."""
    processor, prompts, waiting = detector._florence.processor, [], list(answers)

    def generate(input_ids, **options):
        prompts.extend(processor.batch_decode(input_ids, skip_special_tokens=True))
        said = [waiting.pop(0) for _ in input_ids]
        return processor.tokenizer([f"</s><s>{text}</s>" for text in said], add_special_tokens=False, padding=True,
                                   return_tensors="pt")["input_ids"]  # fmt: skip

    monkeypatch.setattr(detector._florence._model, "generate", generate)
    return prompts


def test_florence2_asks_one_label_at_a_time(florence_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = florence2.Florence2Detector(florence2.Florence2DetectorOptions(florence_folder, batch_size=2), PLACE)
    answers = [
        "red circle<loc_100><loc_200><loc_300><loc_400><loc_0><loc_0><loc_999><loc_999>",
        "cat<loc_10><loc_10><loc_10><loc_500>",  # no width
        "",
    ]
    prompts = speak(detector, monkeypatch, answers)
    first, second, third = detector.detect(
        [picture(100, 200), picture(10, 10), picture(50, 50)], [["рыба", "ü"], [], ["car"]]
    )
    assert [prompt.split("Locate ")[1] for prompt in prompts] == [
        "рыба in the image.",
        "ü in the image.",
        "car in the image.",
    ]
    # the middle of a bin, cut to whole pixels: 100.5 * 200 / 1000 = 20.1, 200.5 * 100 / 1000 = 20.05 ...
    assert [(one.label, one.box, one.score) for one in first.found] == [
        ("рыба", (20, 20, 60, 40), None),
        ("рыба", (0, 0, 199, 99), None),
    ]
    assert first.left_out == Counter({florence2.NO_BOX: 1}) and second.found == third.found == []


def test_florence2_for_real(florence_folder: str) -> None:
    options = florence2.Florence2DetectorOptions(florence_folder, max_new_tokens=8)
    found = florence2.Florence2Detector(options, PLACE).detect(
        [picture(40, 60), picture(30, 30)], [["car"], ["a", "b"]]
    )
    assert len(found) == 2 and AutoProcessor.from_pretrained(florence_folder, backend="pil") is not None


# --- SAM 3


def test_sam3_is_transformers(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from llava_pat.annotation.detectors.sam3 import Sam3, Sam3Options

    detector = Sam3(Sam3Options(str(tiny_models.save_sam3(tmp_path)), threshold=0.1, labels_at_once=2), PLACE)
    image, labels = picture(48, 80), ["red circle", "car", "blue"]
    ours, nothing = detector.detect([image, image], [labels, []])
    assert nothing.found == []
    for label in labels:
        inputs = detector._processor(images=image, text=label, return_tensors="pt")
        with torch.inference_mode():
            outputs = detector._model(**inputs)
        (theirs,) = detector._processor.post_process_instance_segmentation(outputs, 0.1, 0.5, [(48, 80)])
        own = [one for one in ours.found if one.label == label]
        assert len(own) == len(theirs["boxes"]) > 0
        assert torch.allclose(torch.tensor([one.box for one in own]), theirs["boxes"], atol=1e-3)
        assert torch.allclose(torch.tensor([one.score for one in own]), theirs["scores"], atol=1e-5)
        for one, mask in zip(own, theirs["masks"].bool().numpy(), strict=True):
            assert one.mask.shape == (48, 80) and one.mask.dtype == bool and (one.mask != mask).mean() < 1e-3


def test_sam3_without_torchvision_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_pat.annotation.detectors.sam3 import Sam3, Sam3Options

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs the package torchvision: "):
        Sam3(Sam3Options(str(tmp_path)), PLACE)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (GroundingDinoOptions, {"box_threshold": 1.5}), (Owlv2Options, {"threshold": -1}),
        (Owlv2Options, {"template": "no place"}), (florence2.Florence2DetectorOptions, {"task": "<OCR>"}),
    ],
)  # fmt: skip
def test_wrong_options(kind: type, wrong: dict) -> None:
    with pytest.raises(DataError):
        kind(**wrong)
