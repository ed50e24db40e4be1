"""A LoRA folder and its base -> one whole folder in LLaVA's layout, with the answers held against the unmerged model's.

After a QLoRA run there are two bases to merge into, and two different models come out:

    "trained"  (default) the quantised base turned back into floats: the weights that LoRA was trained beside, so the
               merged folder answers as the run's model did
    "plain"    the base as it is on disk: what LLaVA's own loader does with an unmerged folder and --model-base; LoRA
               then meets weights that it has never seen

For a run that was not quantised the two are the same. Measured on the playground's Llama (4.1 M parameters; LoRA of
rank 16, 40 steps on the text of 640 instruct records): greedy tokens equal to those of the trained 4-bit model 100 %
("trained", held-out loss .9118 before and after) and 93.7 % ("plain", .9238); 8 bits 99.5 % and 99.2 % (its activations
are quantised too, which no merged folder repeats).
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llava_pat.models.adapters import load_lora, lora_base, merge_lora
from llava_pat.models.llava_config import read_config, refuse_unsupported, settings_of
from llava_pat.models.llava_layout import save_llava
from llava_pat.models.quantized import Quantization, dequantize, keep_unpacked, quantization_of, read_quantization
from llava_pat.models.restore import load_llava
from llava_pat.models.source import find_tower
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX

logger = logging.getLogger(__name__)

BASES = ("trained", "plain")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of a logit, as a share of the largest logit. Merging only changes the order of rounding."""

_PROMPTS, _WORDS = 4, 12


@dataclass(frozen=True)
class Difference:
    """Between the logits of two models on the same made-up prompts.

    largest: absolute, of one logit. scale: the largest logit. tokens: positions compared, other_tokens: those whose
    most likely token differs, where the first model's best two are further apart than the tolerance.
    """

    largest: float
    scale: float
    tokens: int
    other_tokens: int
    tolerance: float

    @property
    def fits(self) -> bool:
        return self.largest <= self.tolerance * self.scale and self.other_tokens == 0

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.largest:.2g} (largest logit {self.scale:.3g}, tolerance "
            f"{self.tolerance * self.scale:.2g}), {self.other_tokens} of {self.tokens} greedy tokens differ"
        )


@dataclass(frozen=True)
class MergeReport:
    """What `merge_folder` did. quantized: how the base was quantised before it was turned back, None for a plain base.

    dequantized: the run's quantised model against its floats (8 bits: the activations are quantised as well there, so
    they differ). merged: unmerged against merged, in memory. written: unmerged against what was read back from `out`.
    """

    out: Path
    base: str
    dtype: torch.dtype
    quantized: Quantization | None
    dequantized: Difference | None
    merged: Difference
    written: Difference


def merge_folder(
    lora_folder: str | Path,
    base: str | None,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    vision_tower: str | None = None,
    into: str = "trained",
    max_shard_size: int | str = "5GB",
    device: str | torch.device = "cpu",
) -> MergeReport:
    """Merges, verifies and writes. `out` is there only if all of it fits.

    base: folder or hub id; None takes what the LoRA folder names. dtype: of the written weights and of the comparison;
    None takes torch_dtype of the folder's config.json. vision_tower: in place of its mm_vision_tower, also in what is
    written. into: see the top of this file. max_shard_size: as `save_llava`. device: where answers are compared; a
    quantised base is where transformers puts it.
    Raises FileExistsError when `out` holds anything; ValueError when the answers differ, and as `load_lora`.
    """
    if into not in BASES:
        raise ValueError(f"into {into!r} is unknown. Known: {', '.join(BASES)}")
    lora_folder, out = Path(lora_folder), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already and not empty: remove it, or name another folder")
    base = lora_base(lora_folder, base)
    config = read_config(lora_folder)
    if vision_tower is not None:
        config["mm_vision_tower"] = vision_tower
    config.setdefault("tokenizer_model_max_length", 2048)  # LLaVA's default
    settings = settings_of(config)
    refuse_unsupported(settings, str(lora_folder))
    tower = find_tower(str(lora_folder), settings["mm_vision_tower"], vision_tower)
    if dtype is None:
        dtype = DTYPES[config.get("torch_dtype") or "float32"]
    quantized = read_quantization(lora_folder) if into == "trained" else None

    if quantized is None:
        model, dequantized = _load(base, tower, settings, dtype, device), None
        load_lora(model, lora_folder)
        unmerged = _logits(model)
    else:
        model = _load(base, tower, settings, quantized.load_dtype, device, quantized)
        load_lora(model, lora_folder)
        trained = _logits(model)
        _to_floats(model, dtype)
        unmerged = _logits(model)
        dequantized = _difference(trained, unmerged, max(TOLERANCE[dtype], TOLERANCE[quantized.load_dtype]))
        if quantized.bits == 4:
            _refuse_other_answers("the base turned back from 4 bits", dequantized)
    merge_lora(model)
    merged = _difference(unmerged, _logits(model), TOLERANCE[dtype])
    _refuse_other_answers("the merged model", merged)

    aside = out.parent / f".{out.name}.{os.getpid()}"
    try:
        save_llava(
            model,
            aside,
            config,
            tokenizer_source=base,
            dtype=dtype,
            max_shard_size=max_shard_size,
        )
        own_tower = model.tower_is_trained
        del model  # one at a time in memory
        again = _load(aside, tower, settings | {"unfreeze_mm_vision_tower": own_tower}, dtype, device)
        load_llava(again, aside)
        written = _difference(unmerged, _logits(again), TOLERANCE[dtype])
        _refuse_other_answers(f"what was written for {out}", written)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    report = MergeReport(out, base, dtype, quantized, dequantized, merged, written)
    logger.info("%s merged into %s (%s): %s", lora_folder, base, quantized or "as it is", written)
    return report


def _load(
    llm: str | Path,
    tower: str,
    settings: dict,
    dtype: torch.dtype,
    device: str | torch.device,
    quantized: Quantization | None = None,
) -> VisionLanguageModel:
    """Frozen, unless the LoRA folder holds a tower of its own: then that counts as trained, and is saved."""
    own_tower = settings["unfreeze_mm_vision_tower"]
    model = VisionLanguageModel.from_pretrained(
        tower,
        str(llm),
        settings["mm_projector_type"],
        settings["mm_vision_select_layer"],
        settings["mm_vision_select_feature"],
        dtype,
        whole_tower=own_tower,
        quantization_config=None if quantized is None else quantized.config(),
    )
    model.set_trainable(llm=False, tower_layers=-1 if own_tower else 0)
    if quantized is not None:
        keep_unpacked(model.llm)
        if quantization_of(model.llm) is None:
            raise ValueError(f"{llm}: none of its layers was quantised, although the run's base was: {quantized}")
    # What is quantised is where transformers has put it, and does not move.
    return model.to(device if quantized is None else model.llm.device).eval()


def _to_floats(model: VisionLanguageModel, dtype: torch.dtype) -> None:
    """Everything but LoRA (which stays fp32 until it is merged) and the projector."""
    dequantize(model, dtype)
    model.tower.to(dtype)
    for name, parameter in model.llm.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def _logits(model: VisionLanguageModel) -> Tensor:
    """fp32 [S, V] on the CPU: after every word of made-up prompts, half of them around an image, half without."""
    generator = torch.Generator().manual_seed(0)
    device, side = model.llm.device, model.image_size
    parts = []
    for images in (_PROMPTS // 2, 0):
        words = torch.randint(0, model.vocab_size, (_PROMPTS // 2, _WORDS), generator=generator)
        pixels = torch.randn(images, 3, side, side, generator=generator)
        ids = words
        if images:
            patches = torch.full((len(words), model.num_patches), IMAGE_TOKEN_INDEX)
            ids = torch.cat((words[:, : _WORDS // 2], patches, words[:, _WORDS // 2 :]), dim=1)
        # A position is read where its next label is supervised: everywhere but behind image patches.
        labels = torch.where(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX, ids)
        ids, labels, pixels = ids.to(device), labels.to(device), pixels.to(device)
        hidden = model.forward_hidden(ids, torch.ones_like(ids), model.project(model.encode_images(pixels)))
        logits, _ = model.supervised_logits(hidden, labels)
        parts.append(logits.cpu())
    return torch.cat(parts)


def _difference(reference: Tensor, other: Tensor, tolerance: float) -> Difference:
    scale = reference.abs().max().item()
    best = reference.topk(2).values
    clear = best[:, 0] - best[:, 1] > tolerance * scale
    changed = clear & (reference.argmax(-1) != other.argmax(-1))
    return Difference((reference - other).abs().max().item(), scale, len(reference), int(changed.sum()), tolerance)


def _refuse_other_answers(what: str, difference: Difference) -> None:
    if not difference.fits:  # also where a logit is not a number
        raise ValueError(
            f"{what} does not answer as the unmerged one: {difference}. Nothing was kept. Is the base the one that was "
            "trained on, and is the dtype wide enough for its weights (try float32)?"
        )
