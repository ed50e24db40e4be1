"""A checkpoint in any of our layouts as one thing: LLaVA's names for weights, LLaVA's words for settings, all lazy.

    llava    a whole model in LLaVA's layout, written by LLaVA or by us                        llava_layout.py
    hf       a whole model in llava-hf's layout (transformers' LlavaForConditionalGeneration)  hf_layout.py
    stage1   a projector with a config.json; the language model is its base                    checkpoint.py
    lora     adapters; adapters.py merges them into their base

Every weight is held against the model that the config describes, built without memory, before anything is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from llava_pat.models.checkpoint import PROJECTOR_BIN, PROJECTOR_SAFETENSORS
from llava_pat.models.json_file import read_json
from llava_pat.models.llava_config import (
    is_llava,
    is_llava_hf,
    language_config,
    read_config,
    refuse_unsupported,
    settings_of,
    text_config,
)
from llava_pat.models.llava_layout import GENERATION_CONFIG, PROJECTOR_PREFIX, TOWER_PREFIX
from llava_pat.models.open_clip_tower import PREFIX as OPEN_CLIP
from llava_pat.models.projectors import build_projector
from llava_pat.models.shards import (
    BIN_FILE,
    BIN_INDEX,
    SAFE_FILE,
    SAFE_INDEX,
    LazyTensor,
    find_file,
    fit,
    is_local,
    read_file,
    tensor_files,
)
from llava_pat.models.tower_names import name_in_files
from llava_pat.models.tower_source import (
    BUFFERS,
    feature_of,
    tower_shapes,
    tower_weights,
    vision_config_from,
    vision_config_of,
)
from llava_pat.models.unusable import unusable_named

ADAPTER_CONFIG = "adapter_config.json"
HF_RECORD = "llava_pat"
"""Key in llava-hf's config.json under which our converter keeps LLaVA's settings, for the way back."""

_WEIGHTS = (SAFE_FILE, SAFE_INDEX, BIN_FILE, BIN_INDEX)


@dataclass(frozen=True)
class Checkpoint:
    """A whole model: language model, projector and where the tower is.

    language, projector: weights under LLaVA's names (model.*, lm_head.weight; model.mm_projector.*).
    tower: weights under their names in files (tower_names.py). tower_is_own: they came from the checkpoint itself
    because they were trained.
    text: the language model's config, its vocab_size being the number of embedding rows. settings: LLaVA's mm_* keys.
    vision: the tower's config, vision_tower: where its image processor (and, unless own, its weights) were found; None
    and "" where nobody needed them.
    """

    kind: str
    name: str
    text: PretrainedConfig
    settings: dict
    language: dict[str, LazyTensor]
    projector: dict[str, LazyTensor]
    vision: PretrainedConfig | None
    vision_width: int
    tower: dict[str, LazyTensor]
    tower_is_own: bool
    vision_tower: str
    tokenizer: str
    generation: dict
    base: str

    @property
    def parameters(self) -> int:
        """Of the language model, in numbers."""
        return sum(tensor.nbytes // tensor.dtype.itemsize for tensor in self.language.values())


def layout_of(folder: str | Path) -> str:
    """ "llava", "hf", "stage1" or "lora". Raises FileNotFoundError or ValueError for anything else."""
    if find_file(folder, ADAPTER_CONFIG) is not None:
        return "lora"
    if Path(folder).is_dir() and not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json. {_LAYOUTS}")
    config = read_config(folder)
    weights = any(find_file(folder, name) is not None for name in _WEIGHTS)
    if is_llava_hf(config):
        return "hf"
    if is_llava(config) and weights:
        return "llava"
    if is_llava(config) and any(find_file(folder, name) is not None for name in (PROJECTOR_BIN, PROJECTOR_SAFETENSORS)):
        return "stage1"
    raise ValueError(
        f"{folder} is in no layout that is known here (model_type {config.get('model_type')!r}, "
        f"{'weights' if weights else 'no weights'}, {'mm_* keys' if is_llava(config) else 'no mm_* keys'}). {_LAYOUTS}"
    )


_LAYOUTS = (
    "Expected a LLaVA folder (config.json with mm_* keys, model*.safetensors or pytorch_model*.bin), a llava-hf folder "
    "(vision_config and text_config), a stage-1 folder (config.json with mm_* keys, mm_projector.bin), or a LoRA folder"
)


def open_checkpoint(
    folder: str | Path, *, base: str | None = None, vision_tower: str | None = None, need_tower: bool = True
) -> Checkpoint:
    """Opens a folder or hub id of any layout but LoRA's; nothing of size is read yet.

    base: the language model of a stage-1 folder (default: what its config.json names), or the tokenizer's source for
    a llava-hf folder without one. vision_tower: in place of the config's mm_vision_tower.
    need_tower: False looks at no tower outside of the folder, which then need not be there.
    Raises FileNotFoundError and ValueError, naming file and way out, for what does not fit together.
    """
    kind = layout_of(folder)
    if kind == "lora":
        raise ValueError(
            f"{folder} holds adapters (LoRA), not a whole model; merge them first: "
            f"python -m llava_pat.merge {folder} OUT --base BASE"
        )
    if kind == "hf":
        return _open_hf(str(folder), base, vision_tower)
    return _open_llava(str(folder), kind, base, vision_tower, need_tower)


# ---- LLaVA's layout, and stage 1 on top of a base


def _open_llava(folder: str, kind: str, base: str | None, vision_tower: str | None, need_tower: bool) -> Checkpoint:
    config = read_config(folder)
    settings = settings_of(config)
    refuse_unsupported(settings, folder)
    if kind == "stage1":
        base = stage1_base(folder, config, base)
        text = language_config(base)
        stored = tensor_files(base)
        projector = _projector_only(_stage1_file(folder))
        weights_of = base
    else:
        text, weights_of = text_config(config, folder), folder
        stored = tensor_files(folder)
        projector = _projector_only(stored)
    language = {key: tensor for key, tensor in stored.items() if _is_language(key)}
    text, language = _fit_language(text, language, weights_of)
    own = kind == "llava" and bool(settings["unfreeze_mm_vision_tower"])
    tower = {key.removeprefix(TOWER_PREFIX): t for key, t in stored.items() if key.startswith(TOWER_PREFIX)}
    tower = {key: tensor for key, tensor in tower.items() if not key.endswith(BUFFERS)} if own else {}
    vision, tower_at = None, vision_tower or ""
    if need_tower or "mm_hidden_size" not in settings:
        tower_at = find_tower(folder, settings["mm_vision_tower"], vision_tower)
        vision = vision_config_of(tower_at)
        if own:
            what = f"{folder}: its own vision tower (unfreeze_mm_vision_tower is true)"
            tower = fit(tower_shapes(vision), tower, what)
        elif need_tower:
            tower = tower_weights(tower_at, vision)
    width = settings["mm_hidden_size"] if vision is None else vision.hidden_size
    expected = projector_shapes(settings["mm_projector_type"], width, text.hidden_size)
    generation = find_file(weights_of, GENERATION_CONFIG)
    return Checkpoint(
        kind=kind,
        name=folder,
        text=text,
        settings=settings,
        language=language,
        projector=fit(expected, projector, f"{folder}: the projector ({settings['mm_projector_type']})"),
        vision=vision,
        vision_width=width,
        tower=tower,
        tower_is_own=own,
        vision_tower=tower_at,
        tokenizer=weights_of,
        generation={} if generation is None else read_json(generation),
        base=weights_of if kind == "stage1" else str(config.get("_name_or_path", "")),
    )


def _is_language(key: str) -> bool:
    outside = (PROJECTOR_PREFIX, "model.vision_tower.", "model.image_newline", "model.vision_resampler.")
    return not key.startswith(outside) and not key.endswith(BUFFERS)


def _projector_only(stored: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """As LLaVA: a key counts from `mm_projector.` on."""
    parts = {key.partition("mm_projector."): tensor for key, tensor in stored.items()}
    return {PROJECTOR_PREFIX + name: tensor for (_, mark, name), tensor in parts.items() if mark}


def _stage1_file(folder: str) -> dict[str, LazyTensor]:
    """mm_projector.bin first: it is what LLaVA reads."""
    found = [find_file(folder, name) for name in (PROJECTOR_BIN, PROJECTOR_SAFETENSORS)]
    return read_file(next(file for file in found if file is not None))


def stage1_base(folder: str, config: Mapping, base: str | None) -> str:
    """The language model of a stage-1 or LoRA folder. Raises FileNotFoundError when only the user can say."""
    recorded = str(config.get("_name_or_path", ""))
    found = _existing(folder, recorded) if base is None else base
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no language model, and its config.json names {recorded!r}, which is not here; say "
            "--base FOLDER_OR_HUB_ID"
        )
    return found


def find_tower(folder: str, recorded: str, given: str | None) -> str:
    """Where the vision tower is: as given, or as the config records it (from here, or from the folder).

    Raises FileNotFoundError with the way out.
    """
    found = _existing(folder, recorded) if given is None else given
    if not found:
        raise FileNotFoundError(
            f"{folder}: its config.json names the vision tower {recorded!r}, which is not here; say "
            "--vision_tower FOLDER_OR_HUB_ID (such as openai/clip-vit-large-patch14-336)"
        )
    return found


def _existing(folder: str, name: str) -> str:
    """The name if it is a folder seen from here or from `folder`, or a hub id; else "" (it was another machine's)."""
    if name.startswith(OPEN_CLIP):
        model = name.removeprefix(OPEN_CLIP)
        found = _existing(folder, model)
        return f"{OPEN_CLIP}{found}" if found else ""
    if Path(name).is_dir():
        return name
    if Path(folder).is_dir() and name.startswith(".") and (Path(folder) / name).is_dir():
        return str(Path(folder) / name)
    return "" if not name or is_local(name) else name


# ---- llava-hf's layout

_HF_NAMES = (
    (r"^(?:model\.)?language_model\.lm_head\.", "lm_head."),
    (r"^(?:model\.)?language_model\.(?:model\.)?", "model."),
    (r"^(?:model\.)?multi_modal_projector\.linear_1\.", f"{PROJECTOR_PREFIX}0."),
    (r"^(?:model\.)?multi_modal_projector\.linear_2\.", f"{PROJECTOR_PREFIX}2."),
    (r"^(?:model\.)?vision_tower\.", TOWER_PREFIX),
)
"""llava-hf's names, as transformers 4 and 5 write them on disk and as 5 has them in memory -> LLaVA's."""


def from_hf_name(key: str, tower: str = "clip_vision_model") -> str:
    """A name in llava-hf's files -> LLaVA's name for it (itself where it is no llava-hf name).

    tower: model_type of its vision_config.
    """
    for pattern, replacement in _HF_NAMES:
        renamed, count = re.subn(pattern, replacement, key)
        if count and replacement == TOWER_PREFIX:
            return TOWER_PREFIX + name_in_files(tower, renamed.removeprefix(TOWER_PREFIX))
        if count:
            return renamed
    return key


def _open_hf(folder: str, base: str | None, vision_tower: str | None) -> Checkpoint:
    config = read_config(folder)
    text_part = dict(config["text_config"])
    text_part = {key: value for key, value in text_part.items() if (key, value) != ("rope_scaling", None)}
    with unusable_named(folder):
        text = CONFIG_MAPPING[text_part.pop("model_type", "llama")](**text_part)
    text.tie_word_embeddings = bool(config.get("tie_word_embeddings", False) or text.tie_word_embeddings)
    vision = vision_config_from(config["vision_config"], folder)
    record = config.get(HF_RECORD, {})
    strategy = config.get("vision_feature_select_strategy", "default")
    settings = record.get("settings") or {
        "image_aspect_ratio": hf_aspect(folder, vision.model_type),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": feature_of(vision, strategy, folder),
        "mm_vision_select_layer": config.get("vision_feature_layer", -2),
        "mm_vision_tower": vision_tower or "",
        "unfreeze_mm_vision_tower": False,
    }
    kind = vision.model_type
    stored = {from_hf_name(key, kind): t for key, t in tensor_files(folder).items() if not key.endswith(BUFFERS)}
    tower = {key.removeprefix(TOWER_PREFIX): t for key, t in stored.items() if key.startswith(TOWER_PREFIX)}
    language = {key: t for key, t in stored.items() if _is_language(key)}
    text, language = _fit_language(text, language, folder)
    rows = int(record.get("vocab_size", config.get("image_token_index", 32000)))
    text.vocab_size, language = min(rows, text.vocab_size), _cut_rows(language, rows)
    generation = find_file(folder, GENERATION_CONFIG)
    expected = projector_shapes("mlp2x_gelu", vision.hidden_size, text.hidden_size)
    return Checkpoint(
        kind="hf",
        name=folder,
        text=text,
        settings=dict(settings),
        language=language,
        projector=fit(expected, _projector_only(stored), f"{folder}: the projector"),
        vision=vision,
        vision_width=vision.hidden_size,
        tower=fit(tower_shapes(vision), tower, f"{folder}: the vision tower"),
        tower_is_own=bool(settings.get("unfreeze_mm_vision_tower")),
        vision_tower=vision_tower or "",
        tokenizer=base or folder,
        generation={} if generation is None else read_json(generation),
        base=str(record.get("base", "")),
    )


def hf_aspect(folder: str, tower: str) -> str:
    """How the images of a llava-hf folder without our record were fitted; tower: model_type of its vision_config.

    CLIP: "pad", as LLaVA-1.5, which all of llava-hf's 1.5 models are, though their image processors do not pad.
    """
    if tower == "clip_vision_model":
        return "pad"
    file = find_file(folder, "preprocessor_config.json")
    return "pad" if file is not None and read_json(file).get("do_pad") else "square"


def _cut_rows(language: dict[str, LazyTensor], rows: int) -> dict[str, LazyTensor]:
    """Without the rows that llava-hf has behind the vocabulary, for <image> and <pad>."""

    def cut(tensor: LazyTensor) -> LazyTensor:
        shape = (min(rows, tensor.shape[0]), *tensor.shape[1:])
        return LazyTensor(shape, tensor.dtype, lambda: tensor.read()[:rows], tensor.where)

    ends = ("model.embed_tokens.weight", "lm_head.weight")
    return {key: cut(tensor) if key in ends else tensor for key, tensor in language.items()}


# ---- what the configs ask for


def _fit_language(
    text: PretrainedConfig, language: dict[str, LazyTensor], where: str
) -> tuple[PretrainedConfig, dict[str, LazyTensor]]:
    if text.tie_word_embeddings:
        language = {key: tensor for key, tensor in language.items() if key != "lm_head.weight"}
    with torch.device("meta"), unusable_named(where):
        model = AutoModelForCausalLM.from_config(text, trust_remote_code=False)
    expected = {key: tuple(t.shape) for key, t in model.state_dict().items() if not key.endswith(BUFFERS)}
    if text.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    return text, fit(expected, language, f"{where}: the language model")


def projector_shapes(kind: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The names, LLaVA's, and shapes of a projector of that kind. ValueError as `build_projector`."""
    with torch.device("meta"):
        projector = build_projector(kind, width, hidden)
    return {PROJECTOR_PREFIX + key: tuple(tensor.shape) for key, tensor in projector.state_dict().items()}
