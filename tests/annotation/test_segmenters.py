"""Segmenters on tiny models: against transformers' own calls, and coordinates by a decoder that paints its prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamProcessor

from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.segmenters.boxes import Boxes, BoxesOptions
from llava_pat.annotation.segmenters.sam import Sam, SamOptions
from llava_pat.annotation.segmenters.sam2 import Sam2, Sam2Options, SquarePixels
from llava_pat.types import DataError
from tests.annotation import tiny_models

PLACE = Placement()
BOXES = [(1.0, 1.0, 20.0, 20.0), (5.0, 5.0, 70.0, 40.0), (30.0, 2.0, 50.0, 46.0)]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.save_sam(tmp_path_factory.mktemp("sam")))


@pytest.fixture(scope="module")
def sam2_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.save_sam2(tmp_path_factory.mktemp("sam2")))


def middling(segmenter, images: list, boxes: list) -> float:
    """A mask threshold that some pixels of random weights' masks are above: the median of one image's logits."""
    seen = []
    original = segmenter._model.mask_decoder.forward

    def look(*given, **named):
        outputs = original(*given, **named)
        seen.append(outputs[0].median().item())
        return outputs

    segmenter._model.mask_decoder.forward = look
    segmenter.segment(images, boxes)
    segmenter._model.mask_decoder.forward = original
    return seen[0]


@pytest.mark.parametrize("multimask", [False, True])
def test_sam_is_transformers(sam_folder: str, multimask: bool) -> None:
    image = picture(48, 80)
    level = middling(Sam(SamOptions(sam_folder), PLACE), [image], [BOXES])
    options = SamOptions(sam_folder, mask_threshold=level, multimask=multimask, boxes_at_once=2)
    segmenter = Sam(options, PLACE)
    (ours,) = segmenter.segment([image], [BOXES])
    processor = SamProcessor(segmenter._processor)
    processor.target_size = 64
    inputs = processor(image, input_boxes=[[list(box) for box in BOXES]], return_tensors="pt")
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    with torch.inference_mode():
        outputs = segmenter._model(**{k: v.float() for k, v in inputs.items()}, multimask_output=multimask)
    masks = segmenter._processor.post_process_masks(list(outputs.pred_masks), *sizes, mask_threshold=level)[0]
    best = outputs.iou_scores[0].argmax(-1)
    theirs = masks[torch.arange(3), best].numpy()
    assert np.stack(ours).shape == (3, 48, 80) and np.stack(ours).dtype == bool
    assert 0.1 < theirs.mean() < 0.9, "a test of something"
    assert (np.stack(ours) != theirs).mean() < 1e-3


@pytest.mark.parametrize("multimask", [False, True])
def test_sam2_is_transformers(sam2_folder: str, multimask: bool) -> None:
    pytest.importorskip("torchvision")
    from transformers import Sam2ImageProcessor, Sam2Processor

    image = picture(48, 80)
    level = middling(Sam2(Sam2Options(sam2_folder), PLACE), [image], [BOXES])
    segmenter = Sam2(Sam2Options(sam2_folder, mask_threshold=level, multimask=multimask, boxes_at_once=2), PLACE)
    (ours,) = segmenter.segment([image], [BOXES])
    processor = Sam2Processor(Sam2ImageProcessor.from_pretrained(sam2_folder))
    inputs = processor(images=image, input_boxes=[[list(box) for box in BOXES]], return_tensors="pt")
    pixels = segmenter._resize(image, "cpu")
    assert (pixels - inputs["pixel_values"][0]).abs().max() < 2 / 255 / 0.224, "at most a level's rounding"
    sizes = inputs.pop("original_sizes")
    with torch.inference_mode():
        outputs = segmenter._model(**inputs, multimask_output=multimask)
    masks = processor.post_process_masks(outputs.pred_masks, sizes, mask_threshold=level)[0]
    theirs = masks[torch.arange(3), outputs.iou_scores[0].argmax(-1)].numpy()
    assert 0.1 < theirs.mean() < 0.9, "a test of something"
    assert (np.stack(ours) != theirs).mean() < 0.01


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_a_batch_is_its_images_one_by_one(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    build, options = (Sam, SamOptions) if kind == "sam" else (Sam2, Sam2Options)
    images = [picture(48, 80), picture(20, 20), picture(70, 50, 1)]
    boxes = [BOXES, [], [(0.0, 0.0, 30.0, 30.0)]]
    level = middling(build(options(folder), PLACE), images[:1], boxes[:1])
    segmenter = build(options(folder, mask_threshold=level, batch_size=3), PLACE)
    together = segmenter.segment(images, boxes)
    assert [len(masks) for masks in together] == [3, 0, 1]
    for image, own, masks in zip(images, boxes, together, strict=True):
        (alone,) = segmenter.segment([image], [own])
        for left, right in zip(alone, masks, strict=True):
            assert left.shape == (image.height, image.width) and (left != right).mean() < 1e-3


class Painter:
    """In the place of a model of 64 x 64 pixels."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def get_image_embeddings(self, pixels: torch.Tensor):
        return pixels if self.kind == "sam" else [pixels]

    def __call__(self, image_embeddings, multimask_output: bool, input_boxes: torch.Tensor) -> SimpleNamespace:
        ys, xs = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
        masks = []
        for x0, y0, x1, y1 in input_boxes[0]:
            inside = (xs > x0) & (xs < x1) & (ys > y0) & (ys < y1)
            masks.append(torch.nn.functional.avg_pool2d(inside.float()[None] * 2 - 1, 4))
        return SimpleNamespace(pred_masks=torch.stack(masks)[None], iou_scores=torch.ones(1, len(masks), 1))


@pytest.mark.parametrize("kind", ["sam", "sam2"])
@pytest.mark.parametrize("size", [(48, 80), (90, 60), (64, 64)])
def test_masks_lie_where_the_boxes_are(kind: str, size: tuple[int, int], request, monkeypatch) -> None:
    """A decoder that paints its prompt box at a quarter of the model's resolution: upsampled, it is the box again."""
    folder = request.getfixturevalue(f"{kind}_folder")
    segmenter = Sam(SamOptions(folder), PLACE) if kind == "sam" else Sam2(Sam2Options(folder), PLACE)
    monkeypatch.setattr(segmenter, "_model", Painter(kind))
    height, width = size
    box = (width * 0.25, height * 0.5, width * 0.75, height * 0.875)
    ((mask,),) = segmenter.segment([picture(height, width)], [[box]])
    ys, xs = np.nonzero(mask)
    found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    pixel = max(size) / 64 * 4  # of the painter, in the image's
    assert np.abs(np.array(found) - np.array(box)).max() <= pixel / 2 + 1
    assert abs(mask.sum() / ((box[2] - box[0]) * (box[3] - box[1])) - 1) < 0.15


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_half_precision_is_the_encoders_alone(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    build, options = (Sam, SamOptions) if kind == "sam" else (Sam2, Sam2Options)
    image = picture(48, 80)
    level = middling(build(options(folder), PLACE), [image], [BOXES])
    full = build(options(folder, mask_threshold=level), PLACE).segment([image], [BOXES])
    half = build(options(folder, mask_threshold=level), Placement(dtype="bfloat16"))
    seen = []
    half._model.prompt_encoder.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["input_boxes"]), with_kwargs=True
    )
    (masks,) = half.segment([image], [BOXES])
    assert seen[0].dtype == torch.float32
    assert (np.stack(masks) != np.stack(full[0])).mean() < 0.1


def test_the_boxes_are_the_regions() -> None:
    assert Boxes(BoxesOptions(), PLACE).segment([None, None], [BOXES, []]) == [[None] * 3, []]


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_the_other_architecture_and_a_cut_file_are_one_line(kind: str, request, tmp_path: Path) -> None:
    build, options = (Sam, SamOptions) if kind == "sam" else (Sam2, Sam2Options)
    other = request.getfixturevalue("sam2_folder" if kind == "sam" else "sam_folder")
    with pytest.raises(DataError, match="segmenter .*: ") as caught:
        build(options(other), PLACE)
    assert "\n" not in str(caught.value)
    for file in Path(request.getfixturevalue(f"{kind}_folder")).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(DataError, match="segmenter .*: cannot be loaded: "):
        build(options(str(tmp_path)), PLACE)


def test_a_video_model_is_taken_as_the_hub_has_it(tmp_path: Path) -> None:
    """facebook/sam2.1-hiera-* say model_type sam2_video."""
    segmenter = Sam2(Sam2Options(str(tiny_models.save_sam2(tmp_path, video=True))), PLACE)
    ((mask,),) = segmenter.segment([picture(48, 80)], [BOXES[:1]])
    assert mask.shape == (48, 80)


def test_a_folder_without_an_image_processor(sam2_folder: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 64}}')
    with pytest.raises(DataError, match="has no image processor with size, image_mean, image_std"):
        SquarePixels.from_pretrained(str(tmp_path))
    assert SquarePixels.from_pretrained(sam2_folder).width == 64
