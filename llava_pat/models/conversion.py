"""Writes a checkpoint in another layout, one tensor at a time, and compares the result with its source.

Nothing is cast unless asked: every tensor keeps its dtype, so a way there and back gives equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from llava_pat.models.checkpoint import save_config, write_projector
from llava_pat.models.hf_layout import (
    PAD_TOKEN,
    ChatFormat,
    chat_template,
    hf_names,
    refuse_what_llava_hf_lacks,
    with_image_token,
    write_configs,
    write_tokenizer,
)
from llava_pat.models.json_file import read_json
from llava_pat.models.llava_config import finetune_config, stage1_config
from llava_pat.models.llava_layout import (
    TOWER_PREFIX,
    copy_tokenizer,
    write_generation_config,
    write_json,
)
from llava_pat.models.shards import LazyTensor, write_shards
from llava_pat.models.source import Checkpoint, open_checkpoint
from llava_pat.models.tower_source import tower_weights
from llava_pat.types import IMAGE_TOKEN

Progress = Callable[[int], object]


def cast(checkpoint: Checkpoint, dtype: torch.dtype | None) -> Checkpoint:
    """The same with every floating-point weight in `dtype`; None changes nothing."""
    if dtype is None:
        return checkpoint
    return replace(
        checkpoint,
        **{
            part: {name: tensor.to(dtype) for name, tensor in vars(checkpoint)[part].items()}
            for part in ("language", "projector", "tower")
        },
    )


def write_hf(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    image_processor: Mapping,
    image_size: int,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> dict[str, LazyTensor]:
    """llava-hf's layout. Returns what was written, by name.

    tokenizer: gives the ids of training (data.tokenize.load_tokenizer's backend); <image> and <pad> are added here.
    image_processor: the tower's, as a dict; image_size: what it makes, in pixels.
    Raises ValueError for a model that LlavaConfig cannot describe.
    """
    refuse_what_llava_hf_lacks(checkpoint)
    tokenizer, vocabulary = with_image_token(tokenizer, checkpoint.text.vocab_size)
    tensors = hf_names(checkpoint, vocabulary)
    write_shards(folder, tensors, max_shard_size, progress=progress)
    template = chat_template(chat)
    length = int(checkpoint.settings.get("tokenizer_model_max_length", 2048))
    write_tokenizer(tokenizer, checkpoint.tokenizer, template, length, folder)
    dtype = checkpoint.language["model.embed_tokens.weight"].dtype
    write_configs(checkpoint, vocabulary, dtype, image_processor, image_size, template, folder)
    return tensors


def write_llava(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> dict[str, LazyTensor]:
    """LLaVA's layout. Returns what was written, by name.

    The tower's weights are written only if they are the checkpoint's own; see `compare_tower` for a llava-hf folder,
    which always has some.
    """
    tensors = checkpoint.language | checkpoint.projector
    if checkpoint.tower_is_own:
        tensors |= {TOWER_PREFIX + name: tensor for name, tensor in checkpoint.tower.items()}
    write_shards(folder, tensors, max_shard_size, progress=progress)
    write_projector({name: tensor.read() for name, tensor in checkpoint.projector.items()}, folder)
    length = int(checkpoint.settings.get("tokenizer_model_max_length", 2048))
    copy_tokenizer(checkpoint.tokenizer, folder, length)
    if checkpoint.kind == "hf" and checkpoint.tokenizer == checkpoint.name:
        _without_image_token(folder)
    write_generation_config(
        {key: value for key, value in checkpoint.generation.items() if key != "pad_token_id"}, folder
    )
    config = finetune_config(checkpoint.text, **_settings(checkpoint)) | {
        key: checkpoint.settings[key]
        for key in ("freeze_mm_mlp_adapter", "tune_mm_mlp_adapter")
        if key in checkpoint.settings
    }
    config["tune_mm_mlp_adapter"] = config["tune_mm_mlp_adapter"] and checkpoint.kind != "stage1"
    config["unfreeze_mm_vision_tower"] = checkpoint.tower_is_own
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    save_config(config, folder)
    return tensors


def write_stage1(checkpoint: Checkpoint, folder: Path) -> dict[str, LazyTensor]:
    """The projector alone, as stage 1 leaves it. Returns what was written, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    write_projector({name: tensor.read() for name, tensor in checkpoint.projector.items()}, folder)
    save_config(stage1_config(checkpoint.text, **_settings(checkpoint)), folder)
    return checkpoint.projector


def _settings(checkpoint: Checkpoint) -> dict:
    settings = checkpoint.settings
    dtype = checkpoint.language["model.embed_tokens.weight"].dtype
    return {
        "vision_tower": settings["mm_vision_tower"],
        "vision_width": checkpoint.vision_width,
        "projector_type": settings["mm_projector_type"],
        "select_layer": settings["mm_vision_select_layer"],
        "select_feature": settings["mm_vision_select_feature"],
        "image_aspect_ratio": settings["image_aspect_ratio"],
        "model_max_length": int(settings.get("tokenizer_model_max_length", 2048)),
        "padding_side": settings.get("tokenizer_padding_side", "right"),
        "mm_projector_lr": settings.get("mm_projector_lr"),
        "model_name_or_path": checkpoint.base or checkpoint.name,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _without_image_token(folder: Path) -> None:
    """llava-hf's tokenizer files -> the language model's: <image> and <pad> were never words of it."""
    extra = (IMAGE_TOKEN, PAD_TOKEN)
    config = read_json(folder / "tokenizer_config.json")
    for key in ("chat_template", "processor_class", "image_token", "extra_special_tokens"):
        config.pop(key, None)
    decoder = config.get("added_tokens_decoder", {})
    config["added_tokens_decoder"] = {i: token for i, token in decoder.items() if token["content"] not in extra}
    special = read_json(folder / "special_tokens_map.json")
    pad = special.get("unk_token") or special.get("eos_token") or config.get("unk_token") or config.get("eos_token")
    pad = pad if isinstance(pad, str) or pad is None else pad["content"]
    config["pad_token"] = special["pad_token"] = pad
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
    (folder / "added_tokens.json").unlink(missing_ok=True)
    if (folder / "tokenizer.model").is_file():
        (folder / "tokenizer.json").unlink(missing_ok=True)  # transformers 5 builds it from the model file
    elif (folder / "tokenizer.json").is_file():
        content = read_json(folder / "tokenizer.json")
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in extra]
        write_json(folder / "tokenizer.json", content)


def compare_tower(checkpoint: Checkpoint, tower_at: str) -> bool:
    """Whether a checkpoint's tower equals the one of a folder or hub id, in the dtype the checkpoint has."""
    theirs = tower_weights(tower_at, checkpoint.vision)
    return all(
        torch.equal(tensor.read(), theirs[name].to(tensor.dtype).read()) for name, tensor in checkpoint.tower.items()
    )


def compare(folder: Path, checkpoint: Checkpoint, progress: Progress | None = None) -> int:
    """Opens what was written by its own layout's rules and holds every tensor, bit by bit, against its source.

    Returns how many there are. Raises ValueError for the first that differs in name, shape, dtype or a bit.
    """
    again = open_checkpoint(folder, need_tower=False)
    parts = ["language", "projector"] + (["tower"] if again.tower else [])
    count = 0
    for part in parts:
        first, second = vars(checkpoint)[part], vars(again)[part]
        if first.keys() != second.keys():
            differ = sorted(first.keys() ^ second.keys())
            raise ValueError(f"{folder}: the {part} does not read back as {checkpoint.name}'s: {differ[:3]} differ")
        for name, tensor in first.items():
            _same(folder, name, tensor, second[name])
            count += 1
            if progress is not None:
                progress(tensor.nbytes)
    return count


def _same(folder: Path, name: str, source: LazyTensor, written: LazyTensor) -> None:
    if source.dtype != written.dtype or source.shape != written.shape:
        raise ValueError(
            f"{folder}: {name} reads back as {written.dtype} {list(written.shape)}, it was {source.dtype} "
            f"{list(source.shape)}"
        )
    if not torch.equal(_bits(source.read()), _bits(written.read())):
        raise ValueError(f"{folder}: {name} does not read back with the source's values; is the disk sound?")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """So that a NaN equals itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
