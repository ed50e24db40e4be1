"""What SAM and SAM 2 share: boxes of one encoded image -> masks at the image's size, the best of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.stages import Corners, Images


def decode_boxes(
    model: PreTrainedModel,
    embeddings: Any,
    boxes: Tensor,
    place: Placement,
    upsample: Callable[[Tensor], Tensor],
    multimask: bool,
    at_once: int,
) -> np.ndarray:
    """boxes float32 [n, 4] in the model's own pixels -> bool [n, H, W] on the CPU.

    embeddings: of one image, as the model takes them; upsample: logits [n, 1, h, w] -> bool [n, 1, H, W].
    """
    masks = []
    for part in boxes.split(at_once):
        inputs = place.move({"input_boxes": part.unsqueeze(0)})
        outputs = model(image_embeddings=embeddings, multimask_output=multimask, **inputs)
        logits, scores = outputs.pred_masks[0].float(), outputs.iou_scores[0].float()  # [n, K, h, w], [n, K]
        best = scores.argmax(-1)
        chosen = logits[torch.arange(len(best), device=logits.device), best].unsqueeze(1)
        masks.append(upsample(chosen)[:, 0].cpu())
    return torch.cat(masks).numpy()


def segment_in_batches(
    run: Callable[[list, list[Sequence[Corners]]], list[np.ndarray]],
    images: Images,
    boxes: Sequence[Sequence[Corners]],
    size: int,
) -> list[list[np.ndarray]]:
    """Masks by image, bool [H, W] each; images without a box are not run.

    run: at most `size` images and their boxes -> per image bool [boxes, H, W].
    """
    results: list[list[np.ndarray]] = [[] for _ in images]
    asked = [place for place, own in enumerate(boxes) if own]
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        for place, masks in zip(part, run([images[i] for i in part], [boxes[i] for i in part]), strict=True):
            results[place] = list(masks)
    return results
