"""What every pixel of an image shows, by the trained network: images of any size in, probabilities at that size out.

I images, h and w an image's height and width; K kinds and C colours (scheme.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from llava_pat.annotation.pretrained import Placement, load_model
from llava_pat.data.hashes import file_sha256
from playground.annotator.net import STRIDE, SceneNet, SceneNetConfig
from playground.annotator.scheme import COLOUR_NAMES, KIND_NAMES

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class PixelProbabilities:
    """What an image shows, pixel by pixel. Both sum to 1 over the first axis."""

    kind: np.ndarray
    """float32 [K, h, w]."""
    colour: np.ndarray
    """float32 [C, h, w]."""

    def of(self, kind: int, colour: int) -> np.ndarray:
        """float32 [h, w]: probability of both, taken as independent."""
        return self.kind[kind] * self.colour[colour]


class PixelReader:
    """A trained network that looks at PIL images."""

    def __init__(self, net: nn.Module, version: str, place: Placement, batch_size: int) -> None:
        """net: as SceneNet, on the placement's device. batch_size: images at a time."""
        self.version = version
        self._net, self._place, self._batch_size = net, place, batch_size

    @classmethod
    def load(cls, folder: str, place: Placement, what: str, batch_size: int) -> PixelReader:
        """A folder of playground/annotator/train.py. DataError where there is no such network."""
        net = load_model(SceneNet, folder, (SceneNetConfig.model_type,), place, what)
        net = net.to(memory_format=torch.channels_last)
        return cls(net, f"{folder} (sha256 {file_sha256(Path(folder) / WEIGHTS)[:8]})", place, batch_size)

    def read(self, images: Sequence[Image.Image]) -> list[PixelProbabilities]:
        """One an image, in their order; images of one padded size go through together."""
        padded = [pad_to_stride(np.asarray(image)) for image in images]
        found: dict[int, PixelProbabilities] = {}
        order = sorted(range(len(images)), key=lambda place: padded[place].shape)
        for _, group in groupby(order, key=lambda place: padded[place].shape):
            places = list(group)
            for start in range(0, len(places), self._batch_size):
                part = places[start : start + self._batch_size]
                for place, answer in zip(part, self._run([padded[place] for place in part]), strict=True):
                    found[place] = crop(answer, images[place].height, images[place].width)
        return [found[place] for place in range(len(images))]

    @torch.inference_mode()
    def _run(self, pixels: Sequence[np.ndarray]) -> list[PixelProbabilities]:
        inputs = to_input(np.stack(pixels)).to(self._place.device)
        with self._place.autocast():
            logits = self._net(pixel_values=inputs).logits.float()
        kinds, colours = logits.split([len(KIND_NAMES), len(COLOUR_NAMES)], dim=1)
        answers = zip(kinds.softmax(1).cpu().numpy(), colours.softmax(1).cpu().numpy(), strict=True)
        return [PixelProbabilities(kind, colour) for kind, colour in answers]


def to_input(pixels: np.ndarray) -> Tensor:
    """uint8 [I, h, w, 3] -> float32 [I, 3, h, w], -2 to 2."""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return ((values.float() / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)


def pad_to_stride(pixels: np.ndarray) -> np.ndarray:
    """[h, w, 3] -> both sides a multiple of STRIDE: the last row and column are repeated, below and at the right."""
    below, right = -pixels.shape[0] % STRIDE, -pixels.shape[1] % STRIDE
    return np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")


def crop(answer: PixelProbabilities, height: int, width: int) -> PixelProbabilities:
    """Without what pad_to_stride has added."""
    return PixelProbabilities(answer.kind[:, :height, :width], answer.colour[:, :height, :width])
