"""Is a llava-hf folder the same model as its source? Ids, pixels and logits, by transformers' own classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoProcessor, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from llava_pat.data.geometry import Geometry
from llava_pat.data.templates import Template
from llava_pat.data.tokenize import encode
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IMAGE_TOKEN, IMAGE_TOKEN_INDEX, Turn

SAME_PIXELS = 1e-6  # one grey level is 0.014; the order of two multiplications in fp32 is 5e-7
LOGIT_TOLERANCE = 1e-4  # relative to the largest logit: fp32 on both sides, sums in another order

CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("What is shown here?",),
    ("Describe it:  two  spaces, a tab\t, caf\u00e9 \u2014 \u65e5\u672c.", "A red circle.", "Is it large?"),
)
"""Questions and answers in turn; the image belongs to the first question."""


class CheckError(RuntimeError):
    """What was written is not the same model; the message says in what."""


def check_processor(
    folder: Path, tokenizer: PreTrainedTokenizerBase, template: Template, geometry: Geometry, num_patches: int
) -> list[str]:
    """Holds the folder's processor against training's ids and pixels. Returns what was checked.

    Raises CheckError with both sides for the first difference.
    """
    # The PIL backend resizes as training does; torchvision's resizing rounds differently.
    processor = AutoProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    image = made_up_image()
    for conversation in CONVERSATIONS:
        for with_image in (True, False):
            _check_ids(processor, image if with_image else None, conversation, tokenizer, template, num_patches)
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    expected = geometry.pixels(image)
    if pixels.shape != expected.shape or (pixels - expected).abs().max() > SAME_PIXELS:
        raise CheckError(
            f"{folder}: the processor's pixels {list(pixels.shape)} differ from training's {list(expected.shape)}"
            + (f" by up to {(pixels - expected).abs().max():.4g}" if pixels.shape == expected.shape else "")
        )
    return [f"ids of {2 * len(CONVERSATIONS)} prompts", "pixels of an image"]


def made_up_image() -> Image.Image:
    """Noise, wider than high, so that padding and cropping differ."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 67, 3), dtype=np.uint8))


def _check_ids(
    processor: object,
    image: Image.Image | None,
    conversation: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    num_patches: int,
) -> None:
    messages, turns = [], []
    for number, text in enumerate(conversation):
        person = number % 2 == 0
        marked = person and number == 0 and image is not None
        parts = ([{"type": "image"}] if marked else []) + [{"type": "text", "text": text}]
        messages.append({"role": "user" if person else "assistant", "content": parts})
        turns.append(Turn("human" if person else "gpt", f"{IMAGE_TOKEN}\n{text}" if marked else text))
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    ours = encode(turns, template, tokenizer).input_ids
    image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    ours = [i for one in ours for i in ([one] if one != IMAGE_TOKEN_INDEX else [image_id] * num_patches)]
    theirs = processor(images=image, text=prompt, return_tensors="pt")["input_ids"][0].tolist()
    if ours != theirs:
        place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), "the end")
        raise CheckError(
            f"the processor's ids differ from training's from place {place}: {len(theirs)} ids {_near(theirs, place)} "
            f"against {len(ours)} ids {_near(ours, place)}, for the prompt {prompt!r}"
        )


def _near(ids: list[int], place: int | str) -> str:
    return str(ids[max(0, place - 3) : place + 5] if isinstance(place, int) else ids[-5:])


@torch.no_grad()
def round_weights(module: nn.Module, dtypes: set[torch.dtype]) -> None:
    """Gives fp32 weights the precision they have on the disk, in place, where that is one dtype for all."""
    if len(dtypes) == 1:
        (dtype,) = dtypes
        for parameter in module.parameters():
            parameter.copy_(parameter.to(dtype))


@torch.no_grad()
def check_logits(
    hf_folder: Path, model: VisionLanguageModel, prompt: list[int], pixels: torch.Tensor, device: str
) -> float:
    """Compares all logits of one prompt with an image, in fp32; returns the largest difference.

    model: from the other layout, in fp32. prompt: ids with IMAGE_TOKEN_INDEX. pixels: [3, S, S]. Raises CheckError
    beyond the tolerance.
    """
    model.to(device)
    ids = torch.tensor(
        [[i for one in prompt for i in ([one] if one != IMAGE_TOKEN_INDEX else [one] * model.num_patches)]],
        device=device,
    )
    pixels = pixels[None].to(device)
    hidden = model.forward_hidden(ids, torch.ones_like(ids), model.project(model.encode_images(pixels)))
    expected = model.llm.get_output_embeddings()(hidden)
    theirs = LlavaForConditionalGeneration.from_pretrained(hf_folder, dtype=torch.float32).eval().to(device)
    marked = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, theirs.config.image_token_index)
    found = theirs(input_ids=marked, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits
    shared = min(found.shape[-1], expected.shape[-1])  # llava-hf has rows behind the vocabulary
    difference = float((found[..., :shared] - expected[..., :shared]).abs().max())
    allowed = LOGIT_TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise CheckError(
            f"{hf_folder}: transformers' logits differ from ours by {difference:.3g}, allowed are {allowed:.3g}"
        )
    return difference
