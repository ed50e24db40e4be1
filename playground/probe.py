"""How good the playground's base models are, on held-out scenes and glyphs.

The tower: linear probes on the penultimate layer's patches (what LLaVA reads), fitted on training scenes. The language
model: exact answers to questions about scenes given as text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, LlamaForCausalLM

from llava_pat.data.tokenize import load_tokenizer
from playground import language_model, text, tower, world

COVERAGE = 0.25  # share of a patch that makes it an object's patch; stage 1's measures use the same


@torch.no_grad()
def patches(clip: CLIPModel, seed: int, split: str, scenes: int, padded: bool) -> dict[str, Tensor]:
    """Object patches of a split: features [P, Dv], kind [P], colour [P], position [P, 2] in patches, last layer's [P, D]."""
    found: dict[str, list[Tensor]] = {"features": [], "kind": [], "colour": [], "position": [], "projected": []}
    y, x = torch.meshgrid(torch.arange(tower.GRID), torch.arange(tower.GRID), indexing="ij")
    position = torch.stack([x, y], -1).reshape(-1, 2).float()
    for first in range(0, scenes, 50):
        views, labels = [], []
        for index in range(first, min(first + 50, scenes)):
            scene = world.scene(seed, split, index)
            pixels, instances = tower.view(scene, padded)
            views.append(pixels)
            labels.append(tower.patch_targets(scene, instances, COVERAGE)[0])
        seen = clip.vision_model(pixel_values=tower.normalise(np.stack(views)), output_hidden_states=True)
        label = torch.from_numpy(np.stack(labels))
        chosen = label[..., 0] >= 0
        found["features"].append(seen.hidden_states[tower.PENULTIMATE][:, 1:][chosen])
        last = clip.vision_model.post_layernorm(seen.last_hidden_state[:, 1:][chosen])
        found["projected"].append(F.normalize(clip.visual_projection(last), dim=-1))
        found["kind"].append(label[chosen][:, 0])
        found["colour"].append(label[chosen][:, 1])
        found["position"].append(position.expand(len(label), -1, -1)[chosen])
    return {name: torch.cat(values) for name, values in found.items()}


def linear_probe(features: Tensor, labels: Tensor, classes: int, seed: int = 0) -> nn.Module:
    """Multinomial logistic regression on standardised features [P, Dv], full batch."""
    torch.manual_seed(seed)
    mean, spread = features.mean(0), features.std(0) + 1e-6
    layer = nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer((features - mean) / spread), labels) + 1e-4 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return lambda x: layer((x - mean) / spread)


def probe_tower(folder: Path, seed: int, train: int = 1200, val: int = 400) -> dict[str, float]:
    """Accuracies of linear probes per object patch, and the mean error of a linear read-out of the patch's position."""
    from transformers import AutoTokenizer

    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    result: dict[str, float] = {}
    for geometry, padded in (("crop", False), ("pad", True)):
        fitted, held_out = (patches(clip, seed, split, n, padded) for split, n in (("train", train), ("val", val)))
        for name, classes in (("kind", len(world.KINDS)), ("colour", len(world.COLOURS))):
            read = linear_probe(fitted["features"], fitted[name], classes)
            right = read(held_out["features"]).argmax(-1) == held_out[name]
            result[f"{name}_{geometry}"] = float(right.float().mean())
            if name == "kind":
                digit = held_out["kind"] < len(world.DIGITS)
                result[f"kind_digits_{geometry}"] = float(right[digit].float().mean())
                result[f"kind_shapes_{geometry}"] = float(right[~digit].float().mean())
        one = torch.ones(len(fitted["features"]), 1)
        ridge = torch.cat([fitted["features"], one], 1).double()
        gram = ridge.T @ ridge + 1e-3 * torch.eye(ridge.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(gram, ridge.T @ fitted["position"].double())
        tested = torch.cat([held_out["features"], torch.ones(len(held_out["features"]), 1)], 1).double()
        error = (tested @ solution - held_out["position"].double()).norm(dim=-1)
        result[f"position_error_{geometry}"] = float(error.mean())
        words = tokenizer([*world.KINDS, *world.COLOURS], padding=True, return_tensors="pt")
        with torch.no_grad():
            vectors = F.normalize(clip.text_projection(clip.text_model(**words).pooler_output), dim=-1)
        similar = held_out["projected"] @ vectors.T
        split = len(world.KINDS)
        result[f"zero_shot_kind_{geometry}"] = float((similar[:, :split].argmax(-1) == held_out["kind"]).float().mean())
        result[f"zero_shot_colour_{geometry}"] = float(
            (similar[:, split:].argmax(-1) == held_out["colour"]).float().mean()
        )
    return result | {"image_to_caption_at_1_of_100": retrieval(clip, tokenizer, seed)}


@torch.no_grad()
def retrieval(clip: CLIPModel, tokenizer, seed: int) -> float:
    """Share of held-out images whose own caption is the nearest of 100."""
    right = []
    for block in range(4):
        batch = tower.batch_of(seed, "val", range(100 * block, 100 * block + 100))
        image = F.normalize(clip.visual_projection(clip.vision_model(pixel_values=batch["pixels"]).pooler_output), dim=-1)
        captions = tokenizer(batch["captions"], padding=True, truncation=True, return_tensors="pt")
        caption = F.normalize(clip.text_projection(clip.text_model(**captions).pooler_output), dim=-1)
        right.append(((image @ caption.T).argmax(-1) == torch.arange(100)).float().mean())
    return float(torch.stack(right).mean())


def probe_llm(folder: Path, seed: int, scenes: int = 400) -> dict[str, float]:
    """Share of exact greedy answers on held-out scenes given as text, by question type."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return language_model.accuracy(model, load_tokenizer(str(folder), 2048), seed, scenes)


BARS = {
    "kind_crop": 0.85,
    "colour_crop": 0.95,
    **dict.fromkeys((*text.QUESTION_TYPES, "rec"), 0.9),  # what a study of grounding needs of its language model
}
AT_MOST = {"position_error_crop": 0.5}
