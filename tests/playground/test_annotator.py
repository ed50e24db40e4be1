"""The playground's annotator: words, pixels, objects, boxes and masks, training, and its place in the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from llava_pat.annotation.config import load_config
from llava_pat.annotation.items import Item
from llava_pat.annotation.label_rules import LabelRules
from llava_pat.annotation.pipeline import Annotator
from llava_pat.annotation.pretrained import Placement
from llava_pat.data.regions import load_regions, to_mask
from llava_pat.types import DataError
from playground import world
from playground.annotator import detector, net, objects, pixels, scheme, segmenter, tagger, train

CONFIG = Path(__file__).parents[2] / "scripts" / "configs" / "playground_annotate.yaml"
CODE = 10  # levels of red a kind, of green a colour


class Oracle(nn.Module):
    """Reads the truth, which `coded` has written into the pixels."""

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        levels = ((pixel_values * 0.25 + 0.5) * 255 / CODE).round().long()
        kinds = F.one_hot(levels[:, 0], len(scheme.KIND_NAMES))
        colours = F.one_hot(levels[:, 1], len(scheme.COLOUR_NAMES))
        return SimpleNamespace(logits=20.0 * torch.cat([kinds, colours], -1).permute(0, 3, 1, 2))


def coded(targets: np.ndarray) -> Image.Image:
    """[2, h, w] -> an image that only the oracle understands."""
    return Image.fromarray(np.stack([*(targets * CODE), np.zeros_like(targets[0])], -1))


def seen_by_oracle(targets: np.ndarray) -> pixels.PixelProbabilities:
    return pixels.PixelReader(Oracle(), "oracle", Placement(), 4).read([coded(targets)])[0]


@pytest.fixture
def oracle_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detector and segmenter are the real ones, the network is the oracle."""

    def load(folder: str, place: Placement, what: str, batch_size: int) -> pixels.PixelReader:
        return pixels.PixelReader(Oracle(), f"oracle {what}", place, batch_size)

    monkeypatch.setattr(pixels.PixelReader, "load", load)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


# ---- words


def test_labels_are_read_back() -> None:
    assert len(scheme.LABELS) == len(set(scheme.LABELS)) == 128
    for label in scheme.LABELS:
        kind, colour = scheme.read_label(label)
        assert f"{scheme.COLOUR_NAMES[colour]} {scheme.KIND_NAMES[kind]}" == label
    for other in ("red", "three", "red object", "big red three", "red  three", "Red three", "background three", ""):
        assert scheme.read_label(other) is None, other


def test_labels_stay_as_the_exact_regions_have_them() -> None:
    asked = tagger.AllLabels(tagger.AllLabelsOptions(), Placement()).tag([None, None], ["", "a cat"])
    assert [LabelRules().apply_all(own) for own in asked] == [list(scheme.LABELS)] * 2


def test_targets_are_the_scenes_objects(scenes: list[world.Scene]) -> None:
    for scene in scenes[:40]:
        kinds, colours = scheme.pixel_targets(scene)
        assert ((kinds == 0) == (scene.instances < 0)).all() and ((colours == 0) == (scene.instances < 0)).all()
        for index, thing in enumerate(scene.things):
            kind, colour = scheme.read_label(thing.label)
            assert ((kinds == kind) & (colours == colour) == (scene.instances == index)).all()


# ---- geometry


@pytest.mark.parametrize("cut", [(0, 0), (7, 0), (0, 13), (5, 3)])
def test_a_perfect_network_gives_the_exact_regions(
    tmp_path: Path, scenes: list[world.Scene], oracle_stages: None, cut: tuple[int, int]
) -> None:
    """Sizes that are no multiple of the network's stride as well; objects at the edge are cut."""
    items, truth = [], {}
    for index, scene in enumerate(scenes[:24]):
        top, left = cut
        targets = scheme.pixel_targets(scene)[:, top:, left:]
        coded(targets).save(tmp_path / f"{index}.png")
        caption = ", ".join(f"a {thing.label}" for thing in scene.things if thing.kind != "one")
        items.append(Item(str(index), f"{index}.png", caption, f"test: {index}"))
        for place, thing in enumerate(scene.things):
            if thing.kind != "one":
                truth[f"{index}.png", thing.label] = (scene.instances == place)[top:, left:]
    assert len({scene.size for scene in scenes[:24]}) > 2, "square, wide and high"
    lines = [answer.line for answer in Annotator(load_config(CONFIG)).annotate(items, tmp_path)]
    (tmp_path / "regions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line))
    found = {
        (entry.image, region.label): to_mask(region, entry.height, entry.width).astype(bool)
        for entry in load_regions(tmp_path / "regions.jsonl").values()
        for region in entry.regions
    }
    large = {key for key, mask in truth.items() if mask.sum() >= 64}
    assert large <= found.keys() <= truth.keys(), "min_area of the settings is 64"
    overlaps = [overlap(found[key], truth[key]) for key in large]
    assert len(overlaps) > 40 and min(overlaps) > 0.95, min(overlaps)
    assert lines[0]["tools"]["detector"] == "scene detector oracle detector"


def test_images_of_several_sizes_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    shapes = [(33, 50), (48, 48), (33, 50), (16, 17), (48, 48), (40, 33), (33, 50)]
    targets = [np.stack([rng.integers(17, size=s), rng.integers(9, size=s)]).astype(np.uint8) for s in shapes]
    answers = pixels.PixelReader(Oracle(), "oracle", Placement(), 2).read([coded(one) for one in targets])
    for one, answer in zip(targets, answers, strict=True):
        assert (answer.kind.argmax(0) == one[0]).all() and (answer.colour.argmax(0) == one[1]).all()


def test_the_network_answers_at_the_images_size() -> None:
    seer = pixels.PixelReader(net.new_net().eval(), "random", Placement(), 4)
    (answer,) = seer.read([Image.new("RGB", (83, 57), (200, 10, 10))])
    assert answer.kind.shape == (17, 57, 83) and answer.colour.shape == (9, 57, 83)
    assert np.allclose(answer.kind.sum(0), 1, atol=1e-5) and np.allclose(answer.colour.sum(0), 1, atol=1e-5)


# ---- objects


def blank(height: int = 40, width: int = 60) -> np.ndarray:
    return np.zeros((2, height, width), np.uint8)


def put(targets: np.ndarray, label: str, y0: int, y1: int, x0: int, x1: int) -> None:
    kind, colour = scheme.read_label(label)
    targets[:, y0:y1, x0:x1] = np.array([kind, colour])[:, None, None]


def test_pieces() -> None:
    inside = np.zeros((20, 30), bool)
    inside[2:5, 2:5] = inside[5:8, 5:8] = True  # they touch at a corner
    inside[2:5, 20:25] = inside[9:12, 20:25] = True  # four pixels between
    parts = [(piece.sum(), objects.box_around(piece)) for piece in objects.find_pieces(inside, 0)]
    assert parts == [(18, (2, 2, 8, 8)), (15, (20, 2, 25, 5)), (15, (20, 9, 25, 12))]
    assert [piece.sum() for piece in objects.find_pieces(inside, 1)] == [18, 15, 15]
    joined = list(objects.find_pieces(inside, 2))
    assert [piece.sum() for piece in joined] == [18, 30] and (joined[0] | joined[1] == inside).all()
    assert not list(objects.find_pieces(np.zeros((5, 5), bool), 2))


def test_one_detection_an_object() -> None:
    targets = blank()
    put(targets, "red cross", 4, 24, 4, 24)
    put(targets, "blue one", 12, 15, 0, 40)  # a stroke over it
    put(targets, "red cross", 2, 12, 45, 55)
    put(targets, "red ring", 30, 34, 50, 54)  # 16 pixels
    options = detector.SceneDetectorOptions()
    labels = ["red cross", "blue one", "red ring", "green star", "wooden bench"]
    found = detector.find_labels(seen_by_oracle(targets), labels, options)
    assert [(one.label, one.box) for one in found.found] == [
        ("red cross", (45, 2, 55, 12)), ("red cross", (4, 4, 24, 24)), ("blue one", (0, 12, 40, 15)),
    ]  # fmt: skip
    assert all(0.99 < one.score <= 1 and one.mask is None for one in found.found)
    assert found.left_out == {detector.UNKNOWN: 1}


def test_the_score_is_the_probability() -> None:
    kind, colour = np.full((17, 30, 30), 0.01, np.float32), np.full((9, 30, 30), 0.01, np.float32)
    known = scheme.read_label("pink star")
    kind[known[0], 5:15, 5:15], colour[known[1], 5:15, 5:15] = 0.8, 0.9
    kind[known[0], 5:15, 10:15] = 0.6
    seen = pixels.PixelProbabilities(kind, colour)
    (one,) = detector.find_labels(seen, ["pink star"], detector.SceneDetectorOptions()).found
    assert one.score == pytest.approx((0.72 + 0.54) / 2, abs=1e-5) and one.box == (5, 5, 15, 15)
    (one,) = detector.find_labels(seen, ["pink star"], detector.SceneDetectorOptions(threshold=0.6)).found
    assert one.score == pytest.approx(0.72, abs=1e-5) and one.box == (5, 5, 10, 15)
    assert not detector.find_labels(seen, ["pink star"], detector.SceneDetectorOptions(threshold=0.75)).found


def test_a_mask_is_what_fills_the_box() -> None:
    targets = blank()
    put(targets, "red square", 10, 30, 10, 30)
    put(targets, "blue square", 5, 14, 26, 50)  # over its corner
    seen = seen_by_oracle(targets)
    red, blue = ((targets[1] == scheme.read_label(label)[1]) for label in ("red square", "blue square"))
    assert (objects.pixels_in_box(seen, (9.6, 9.6, 30.4, 30.4), 0.5) == red).all()
    assert (objects.pixels_in_box(seen, (26, 5, 50, 14), 0.5) == blue).all()
    assert (objects.pixels_in_box(seen, (10, 20, 30, 30), 0.5).sum()) == 200, "no pixel outside the box"
    assert not objects.pixels_in_box(seen, (50, 30, 60, 40), 0.5).any(), "background alone"


def test_images_without_labels_are_not_looked_at(oracle_stages: None) -> None:
    finder = detector.SceneDetector(detector.SceneDetectorOptions(), Placement())
    cutter = segmenter.SceneSegmenter(segmenter.SceneSegmenterOptions(), Placement())
    nothing = finder.detect([None, None], [[], []])
    assert [one.found for one in nothing] == [[], []] and cutter.segment([None], [[]]) == [[]]


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.0}, {"min_pixels": 0}, {"reach": -1}])
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(DataError, match="scene detector"):
        detector.SceneDetectorOptions(**options)
    with pytest.raises(DataError, match="scene segmenter"):
        segmenter.SceneSegmenterOptions(threshold=1.5)


# ---- training


def weights(folder: Path) -> bytes:
    return (folder / pixels.WEIGHTS).read_bytes()


def test_training_learns_and_repeats(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--steps", "12", "--batch_size", "4", "--threads", "1", "--seed", "3"]
    for name in ("a", "b"):
        train.main(["--out", str(tmp_path / name), *arguments])
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert not list((tmp_path / "a").glob("*.pt")), "the state of a finished training is not kept"
    about = json.loads((tmp_path / "a" / "training.json").read_text())
    assert about["scenes"] == 48 and about["seed"] == 3 and about["split"] == "train"
    inputs, targets = train.draw_batch(3, range(1000, 1008))
    torch.manual_seed(3)
    before, after = net.new_net(), net.SceneNet.from_pretrained(tmp_path / "a")
    with torch.inference_mode():
        losses = [float(net.loss_of(one.train()(pixel_values=inputs).logits, targets)[0]) for one in (before, after)]
    assert losses[1] < 0.7 * losses[0], losses


def test_a_killed_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    train.train(tmp_path / "whole", seed=3, steps=4, batch_size=2)
    draw, monkey = train.draw_batch, SimpleNamespace(left=3)

    def killed(seed: int, indices: range):
        monkey.left -= 1
        if monkey.left < 0:
            raise KeyboardInterrupt
        return draw(seed, indices)

    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    monkeypatch.setattr(train, "draw_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path / "parts", seed=3, steps=4, batch_size=2)
    assert not (tmp_path / "parts" / pixels.WEIGHTS).exists()
    monkey.left = 2  # the third and the fourth step: the first two are not done again
    train.train(tmp_path / "parts", seed=3, steps=4, batch_size=2)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_training_scenes_are_of_another_world_and_of_train(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(train.world, "scene", lambda *which: drawn.append(which) or world_scene(*which))
    inputs, targets = train.draw_batch(1, range(5, 9))
    assert drawn == [(1, "train", index) for index in range(5, 9)]
    assert inputs.shape == (4, 3, 80, 80) and targets.shape == (4, 2, 80, 80) and targets.dtype == torch.int64
    assert train.build_parser().parse_args([]).seed != 0, "the playground's data are of seed 0"


world_scene = world.scene


def test_annotation_reads_the_network_that_was_saved(tmp_path: Path, scenes: list[world.Scene]) -> None:
    made = net.new_net()
    for _ in range(3):  # running statistics that are none of a new network
        made(pixel_values=train.draw_batch(3, range(2))[0])
    made.save_pretrained(tmp_path / "net")
    images = [Image.fromarray(scene.pixels) for scene in scenes[:3]]
    finder = detector.SceneDetector(detector.SceneDetectorOptions(model=str(tmp_path / "net")), Placement())
    expected = pixels.PixelReader(made.eval(), "", Placement(), 32).read(images)
    for one, other in zip(finder._reader.read(images), expected, strict=True):
        assert (one.kind == other.kind).all() and (one.colour == other.colour).all()
    assert finder.version.startswith(f"scene detector {tmp_path / 'net'} (sha256 ")


def test_a_folder_without_a_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="detector .*nowhere: cannot be loaded"):
        detector.SceneDetector(detector.SceneDetectorOptions(model=str(tmp_path / "nowhere")), Placement())
