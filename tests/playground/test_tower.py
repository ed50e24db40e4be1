"""The tower's training sees what stage 1 and stage 2 will show it: the same pixels, the same patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPVisionModel

from llava_pat.data.geometry import CenterCrop, Pad, geometry_for
from playground import tower, world


def geometry(padded: bool):
    return (Pad if padded else CenterCrop)(size=world.SIDE, mean=tower.MEAN, std=tower.STD)


@pytest.fixture(scope="module")
def words():
    """No tokenizer is needed to try the losses: any ids do."""
    return {"vocabulary": 40, "bos": 38, "eos": 39}


@pytest.mark.parametrize("padded", [False, True])
def test_view_has_the_geometrys_pixels(scenes, padded):
    """The crop to the bit; the padding too, since both resize the same padded square."""
    for scene in scenes[:60]:
        pixels, instances = tower.view(scene, padded)
        assert pixels.shape == (80, 80, 3) and instances.shape == (80, 80)
        wanted = geometry(padded).pixels(Image.fromarray(scene.pixels))
        found = tower.normalise(pixels[None])[0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_view_crops_instances_exactly(scenes):
    for scene in scenes[:60]:
        _, instances = tower.view(scene, padded=False)
        for index in range(len(scene.things)):
            wanted = geometry(False).mask(scene.instances == index)
            assert np.array_equal(instances == index, wanted.numpy() == 1.0)
            assert set(wanted.unique().tolist()) <= {0.0, 1.0}


def test_view_pads_instances_within_a_pixels_rounding(scenes):
    """Nearest-neighbour masks against exact area shares: they differ at edges only, where a pixel is cut."""
    for scene in scenes[:60]:
        _, instances = tower.view(scene, padded=True)
        for index in range(len(scene.things)):
            share = geometry(True).mask(scene.instances == index).numpy()
            assert ((instances == index) <= (share > 0)).all(), "outside of the object"
            assert ((instances == index) >= (share == 1)).all(), "a hole in the object"
        shares = sum(geometry(True).mask(scene.instances == index).numpy() for index in range(len(scene.things)))
        inside = np.isin(instances, range(len(scene.things)))  # of the background only this is promised: it is none
        assert abs(inside.sum() - shares.sum()) < 0.12 * shares.sum() + 8


def strongest(scene: world.Scene, padded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Per patch, from llava_pat's coverage: the object that covers most (or -1), and how clear that is."""
    masks = np.stack([scene.instances == index for index in range(len(scene.things))])
    coverage = geometry(padded).coverage(masks, tower.PATCH).numpy()
    ordered = np.sort(np.concatenate([coverage, np.full((1, coverage.shape[1]), tower.LABELLED)]), axis=0)
    return np.where(coverage.max(0) > tower.LABELLED, coverage.argmax(0), -1), ordered[-1] - ordered[-2]


@pytest.mark.parametrize(("padded", "clear"), [(False, 0.0), (True, 0.15)])
def test_patch_targets_follow_coverage(scenes, padded, clear):
    """In the crop for every patch; padded, where masks are rounded, for every patch that is not a close call."""
    seen = 0
    for scene in scenes[:60]:
        labels, _ = tower.patch_targets(scene, tower.view(scene, padded)[1])
        wanted, margin = strongest(scene, padded)
        for patch in np.flatnonzero(margin > clear):
            if wanted[patch] < 0:
                assert (labels[patch] == -1).all(), (patch, margin[patch])
                continue
            thing = scene.things[wanted[patch]]
            assert world.KINDS[labels[patch, 0]] == thing.kind and tower.COLOUR_NAMES[labels[patch, 1]] == thing.colour
            seen += 1
    assert seen > 500


@pytest.mark.parametrize(("padded", "pixels"), [(False, 1e-4), (True, 1.5)])
def test_patch_boxes_are_of_what_is_in_view(scenes, padded, pixels):
    """Of the crop to the pixel, of what is left after it; padded, where masks are rounded, to a pixel and a half."""
    cut = 0
    for scene in scenes[:60]:
        labels, boxes = tower.patch_targets(scene, tower.view(scene, padded)[1])
        height, width = scene.instances.shape
        for patch in np.flatnonzero(labels[:, 0] >= 0):
            names = world.KINDS[labels[patch, 0]], tower.COLOUR_NAMES[labels[patch, 1]]
            (index,) = [i for i, thing in enumerate(scene.things) if (thing.kind, thing.colour) == names]
            rows, columns = np.nonzero(geometry(padded).mask(scene.instances == index).numpy() > 0.5)
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            np.testing.assert_allclose(boxes[patch] * world.SIDE, seen, atol=pixels)
            whole = np.array(geometry(padded).box(scene.things[index].box, height, width))
            cut += bool(np.abs(seen - whole).max() > 1)
            inside = (seen[:2] >= whole[:2] - pixels).all() and (seen[2:] <= whole[2:] + pixels).all()
            assert inside, "llava_pat moves the box to the same place"
    assert padded or cut


def test_a_box_outside_the_view_labels_nothing():
    instances = np.full((80, 112), -1, np.int8)
    instances[10:30, 0:12] = 0  # the crop begins at column 16
    scene = world.Scene(np.zeros((80, 112, 3), np.uint8), instances, (world.Thing("one", "red", (0, 10, 12, 30)),))
    labels, boxes = tower.patch_targets(scene, tower.view(scene, padded=False)[1])
    assert (labels == -1).all() and not boxes.any()
    assert (tower.patch_targets(scene, tower.view(scene, padded=True)[1])[0] >= 0).any(), "padding keeps it"


def test_batches_follow_from_their_indices():
    together = tower.batch_of(0, "train", range(4, 8))
    tower.batch_of(3, "val", range(2))
    alone = tower.batch_of(0, "train", range(6, 7))
    assert together["captions"][2] == alone["captions"][0]
    for name in ("pixels", "labels", "boxes"):
        assert torch.equal(together[name][2], alone[name][0]), name


def test_both_views_occur():
    """Half of the scenes padded: non-square ones then show the padding's colour in their first row or column."""
    fill = tower.normalise(np.full((1, 80, 80, 3), tower.FILL, np.uint8))[0, :, 0, 0]
    padded = cropped = 0
    for index in range(60):
        if world.scene(0, "train", index).size != (80, 80):
            corner = tower.batch_of(0, "train", range(index, index + 1))["pixels"][0, :, 0, 0]
            shows = bool((corner - fill).abs().max() < 0.02)
            padded, cropped = padded + shows, cropped + (not shows)
    assert min(padded, cropped) > 5, (padded, cropped)


@pytest.fixture(scope="module")
def step(words):
    """A tower, a batch of four scenes, and made-up captions of the right form."""
    torch.manual_seed(0)
    model = tower.Tower(**words)
    batch = tower.batch_of(0, "train", range(4))
    captions = {"input_ids": torch.randint(0, 38, (4, 8))}
    captions["input_ids"][:, 0], captions["input_ids"][:, -1] = 38, 39
    spoken = torch.stack([torch.tensor([38, index, 39]) for index in range(24)])
    y, x = torch.meshgrid(torch.arange(tower.GRID), torch.arange(tower.GRID), indexing="ij")
    position = (torch.stack([x, y], -1).reshape(1, -1, 2) + 0.5) / tower.GRID
    return lambda: tower.losses(model, batch, captions, {"input_ids": spoken}, position), model


def test_losses_fall(step):
    losses, model = step
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    curve = []
    for _ in range(4):
        terms = losses()
        assert set(terms) == {"contrast", "region", "what", "where"}
        assert all(torch.isfinite(value) and value.ndim == 0 for value in terms.values())
        curve.append({name: float(value.detach()) for name, value in terms.items()})
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    totals = [sum(terms.values()) for terms in curve]
    assert totals == sorted(totals, reverse=True), totals
    # before anything is learned: one of four captions both ways, one of 16 kinds and one of 8 colours
    assert curve[0]["contrast"] == pytest.approx(np.log(4), rel=0.35)
    assert curve[0]["what"] == pytest.approx(np.log(16) + np.log(8), rel=0.35)
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == [], unused


def test_the_class_token_and_patches_are_where_llava_looks(step):
    """The heads read hidden_states[-2] without the class token: LLaVA's mm_vision_select_layer -2, `patch`."""
    _, model = step
    seen = model.clip.vision_model(pixel_values=torch.zeros(1, 3, 80, 80), output_hidden_states=True)
    assert seen.hidden_states[tower.PENULTIMATE].shape == (1, 1 + tower.GRID**2, 192)
    assert tower.PENULTIMATE == -2 and tower.GRID == 10


def test_export_loads_as_a_tower(step, tmp_path):
    _, model = step
    tower.export(model.clip, tmp_path)
    for kind in (CLIPModel, CLIPVisionModel):
        _, report = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"], report
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    built = geometry_for("square", processor)
    assert built == geometry(False), "stage 1's pixels are what the tower was trained on"


def test_the_clip_tokenizer_pads_with_its_end():
    """CLIP pools at the first end token, so padding with it is harmless: a padded word gives the same ids first."""
    tokenizer = AutoTokenizer.from_pretrained(Path(tower.__file__).parent / "models" / "clip")
    padded = tokenizer(["red", "a red three"], padding=True)
    assert padded["input_ids"][0][:3] == tokenizer("red")["input_ids"]
    assert padded["input_ids"][0][3:] == [tokenizer.eos_token_id] * 2
    assert padded["attention_mask"][0] == [1, 1, 1, 0, 0]
