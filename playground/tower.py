"""Trains the playground's CLIP: a CLIPVisionModel with its text tower, contrastively, on fresh scenes.

Three terms, added up:

    image-caption   symmetric InfoNCE between the image and its caption, as CLIP (arXiv 2103.00020) is trained
    region-label    each labelled patch of the last layer, through the visual projection, against the text embeddings of
                    every kind and every colour: the text tower reads single words, and patches mean words
    warm-up heads   linear heads on the penultimate layer's patches (the layer LLaVA reads) for kind, colour, the patch's
                    own position and its object's box; thrown away afterwards

The real CLIP learned local content and position from 400 million captions; the last two terms stand in for those. Half of
the scenes come centre-cropped (stage 1's geometry), half padded (stage 2's).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from playground import text, world
from playground.fit import fit

PATCH = 8
GRID = world.SIDE // PATCH
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILL = tuple(int(value * 255) for value in MEAN)  # LLaVA's padding colour
PENULTIMATE = -2
COLOUR_NAMES = tuple(world.COLOURS)
LABELLED = 0.2  # share of a patch that an object must cover for the patch to be labelled with it


class Tower(nn.Module):
    """CLIP and the warm-up heads on the penultimate patches."""

    def __init__(self, vocabulary: int, bos: int, eos: int):
        super().__init__()
        self.clip = CLIPModel(clip_config(vocabulary, bos, eos))
        self.clip.set_attn_implementation("eager")  # on a CPU in bf16, the fused kernel's backward takes 60 % of the step
        width = self.clip.config.vision_config.hidden_size
        self.heads = nn.Linear(width, len(world.KINDS) + len(COLOUR_NAMES) + 4 + 2)


def clip_config(vocabulary: int, bos: int, eos: int) -> CLIPConfig:
    vision = dict(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=5,
        num_attention_heads=6,
        image_size=world.SIDE,
        patch_size=PATCH,
        projection_dim=128,
    )
    words = dict(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=vocabulary,
        max_position_embeddings=77,
        projection_dim=128,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    return CLIPConfig(vision_config=vision, text_config=words, projection_dim=128)


def view(scene: world.Scene, padded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [80, 80, 3] and instances [80, 80] after stage 1's crop or stage 2's padding."""
    height, width = scene.instances.shape
    if not padded:
        top, left = (height - world.SIDE) // 2, (width - world.SIDE) // 2
        window = slice(top, top + world.SIDE), slice(left, left + world.SIDE)
        return scene.pixels[window], scene.instances[window]
    side = max(height, width)
    if side == world.SIDE:
        return scene.pixels, scene.instances
    top, left = (side - height) // 2, (side - width) // 2
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = FILL
    pixels[top : top + height, left : left + width] = scene.pixels
    instances = np.full((side, side), -1, np.int8)
    instances[top : top + height, left : left + width] = scene.instances
    size = (world.SIDE, world.SIDE)
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    unsigned = Image.fromarray(instances.view(np.uint8)).resize(size, Image.Resampling.NEAREST)  # Pillow has no int8
    return np.array(small), np.asarray(unsigned).view(np.int8)


def patch_targets(
    scene: world.Scene, instances: np.ndarray, labelled: float = LABELLED
) -> tuple[np.ndarray, np.ndarray]:
    """Per patch: kind, colour (or -1) [N, 2] and the object's box in the view, 0-1 [N, 4].

    A patch belongs to the object that covers most of it, if that is more than `labelled`.
    """
    labels = np.full((GRID * GRID, 2), -1, np.int64)
    boxes = np.zeros((GRID * GRID, 4), np.float32)
    strongest = np.full(GRID * GRID, labelled, np.float32)
    for index, thing in enumerate(scene.things):
        mask = instances == index
        if not mask.any():
            continue
        cover = mask.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).reshape(-1)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        wins = cover > strongest
        labels[wins] = world.KINDS.index(thing.kind), COLOUR_NAMES.index(thing.colour)
        boxes[wins] = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), np.float32) / world.SIDE
        strongest = np.maximum(strongest, cover)
    return labels, boxes


def normalise(pixels: np.ndarray) -> Tensor:
    """[I, 80, 80, 3] uint8 -> [I, 3, 80, 80] float32, with CLIP's mean and standard deviation."""
    values = torch.from_numpy(pixels).float().div_(255)
    return ((values - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def batch_of(seed: int, split: str, indices: range) -> dict:
    """Scenes as tensors: pixels, captions, patch labels [I, N, 2], boxes [I, N, 4]."""
    pixels, captions, labels, boxes = [], [], [], []
    for index in indices:
        scene = world.scene(seed, split, index)
        rng = np.random.default_rng([seed, world.SPLITS[split], index, 1])
        image, instances = view(scene, padded=bool(rng.integers(2)))
        patch_labels, patch_boxes = patch_targets(scene, instances)
        pixels.append(image)
        captions.append(text.caption(scene, rng))
        labels.append(patch_labels)
        boxes.append(patch_boxes)
    return {
        "pixels": normalise(np.stack(pixels)),
        "captions": captions,
        "labels": torch.from_numpy(np.stack(labels)),
        "boxes": torch.from_numpy(np.stack(boxes)),
    }


def train(folder: Path, work: Path, steps: int, batch_size: int, seed: int) -> None:
    """Trains and writes a CLIPModel folder (bf16 safetensors, tokenizer, image processor)."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tower = Tower(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    words = tokenizer([*world.KINDS, *COLOUR_NAMES], padding=True, return_tensors="pt")
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    position = (torch.stack([x, y], -1).reshape(1, -1, 2) + 0.5) / GRID

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = batch_of(seed, "train", range(step * batch_size, (step + 1) * batch_size))
        captions = tokenizer(batch["captions"], padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            terms = losses(tower, batch, captions, words, position)
        total = sum(terms.values())
        return total, {name: float(value.detach()) for name, value in terms.items()}

    fit(tower, loss_of, steps=steps, learning_rate=1e-3, state=work / "tower.pt")
    export(tower.clip, folder)


def losses(tower: Tower, batch: dict, captions, words, position: Tensor) -> dict[str, Tensor]:
    """The three terms of the module's docstring, the warm-up heads' in two: what is there, and where."""
    clip = tower.clip
    seen = clip.vision_model(pixel_values=batch["pixels"], output_hidden_states=True)
    scale = clip.logit_scale.exp().clamp(max=100)

    image = F.normalize(clip.visual_projection(seen.pooler_output), dim=-1)
    caption = F.normalize(clip.text_projection(clip.text_model(**captions).pooler_output), dim=-1)
    logits = scale * image @ caption.T
    target = torch.arange(len(logits))
    contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    labels = batch["labels"].flatten(0, 1)
    chosen = labels[:, 0] >= 0
    kind, colour = labels[chosen].T
    last = clip.vision_model.post_layernorm(seen.last_hidden_state[:, 1:]).flatten(0, 1)[chosen]
    patches = F.normalize(clip.visual_projection(last), dim=-1)
    word_vectors = F.normalize(clip.text_projection(clip.text_model(**words).pooler_output), dim=-1)
    similar = scale * patches @ word_vectors.T
    split = len(world.KINDS)
    region = F.cross_entropy(similar[:, :split], kind) + F.cross_entropy(similar[:, split:], colour)

    heads = tower.heads(seen.hidden_states[PENULTIMATE][:, 1:])
    kinds, colours, box, own = heads.split([len(world.KINDS), len(COLOUR_NAMES), 4, 2], dim=-1)
    what = F.cross_entropy(kinds.flatten(0, 1)[chosen], kind) + F.cross_entropy(colours.flatten(0, 1)[chosen], colour)
    where = F.smooth_l1_loss(box.flatten(0, 1)[chosen], batch["boxes"].flatten(0, 1)[chosen], beta=0.02)
    where = 10 * (where + F.smooth_l1_loss(own, position.expand_as(own), beta=0.02))
    return {"contrast": contrast, "region": region, "what": what, "where": where}


def export(clip: CLIPModel, folder: Path) -> None:
    """Weights under the names that every transformers 4 and 5 reads, the config, and CLIP's preprocessor."""
    from safetensors.torch import save_file

    state = {name: value.to(torch.bfloat16).contiguous() for name, value in clip.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = clip.config.to_dict() | {"architectures": ["CLIPModel"], "torch_dtype": "bfloat16"}
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    processor = {
        "crop_size": {"height": world.SIDE, "width": world.SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": world.SIDE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
