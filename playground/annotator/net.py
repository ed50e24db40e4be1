"""The network that detector and segmenter read: a U-Net (arXiv 1505.04597) that answers twice for every pixel.

It works on squares of 2 x 2 pixels, which is a quarter of the work; strokes of digits are three pixels wide.
I images, H and W multiples of STRIDE; K = 17 kinds and C = 9 colours, background being the first of both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from playground.annotator.scheme import COLOUR_NAMES, KIND_NAMES

WIDTHS = (32, 64, 96, 128)
SQUARE = 2
STRIDE = SQUARE * 2 ** (len(WIDTHS) - 1)  # of the deepest layer


class SceneNetConfig(PretrainedConfig):
    """Nothing can be chosen; `answers` says what the channels mean."""

    model_type = "playground_scene_net"

    def __init__(self, **settings) -> None:
        self.answers = [f"kind {name}" for name in KIND_NAMES] + [f"colour {name}" for name in COLOUR_NAMES]
        super().__init__(**settings)


class SceneNet(PreTrainedModel):
    """pixel_values float32 [I, 3, H, W] -> .logits [I, K + C, H, W]."""

    config_class = SceneNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SceneNetConfig) -> None:
        super().__init__(config)
        inputs = (3 * SQUARE**2, *WIDTHS)
        self.down = nn.ModuleList(_Block(inputs[i], width) for i, width in enumerate(WIDTHS))
        self.up = nn.ModuleList(_Block(width + WIDTHS[i + 1], width) for i, width in enumerate(WIDTHS[:-1]))
        self.answer = nn.Conv2d(WIDTHS[0], len(config.answers) * SQUARE**2, 1)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        hidden, seen = F.pixel_unshuffle(pixel_values, SQUARE), []
        for level, block in enumerate(self.down):
            hidden = block(F.max_pool2d(hidden, 2) if level else hidden)
            seen.append(hidden)
        for block, finer in zip(reversed(self.up), reversed(seen[:-1]), strict=True):
            hidden = block(torch.cat([finer, F.interpolate(hidden, scale_factor=2.0)], dim=1))
        return SemanticSegmenterOutput(logits=F.pixel_shuffle(self.answer(hidden), SQUARE))

    def _init_weights(self, module: nn.Module) -> None:
        """They stay as torch's layers begin; transformers would draw all of them with a deviation of 0.02."""


class _Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.around = nn.Conv2d(inputs, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(hidden)))
        return F.relu(self.second_norm(self.second(inner)) + self.around(hidden))


AutoConfig.register(SceneNetConfig.model_type, SceneNetConfig)


def new_net() -> SceneNet:
    """Random weights; channels last, which convolutions on a CPU like better."""
    return SceneNet(SceneNetConfig()).to(memory_format=torch.channels_last)


def loss_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of both answers, added; and each. logits [I, K + C, H, W], targets int64 [I, 2, H, W]."""
    kinds, colours = logits.float().split([len(KIND_NAMES), len(COLOUR_NAMES)], dim=1)
    kind, colour = F.cross_entropy(kinds, targets[:, 0]), F.cross_entropy(colours, targets[:, 1])
    return kind + colour, {"kind": float(kind.detach()), "colour": float(colour.detach())}
