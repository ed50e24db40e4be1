"""Stage-1 files: the projector under LLaVA's key names, and the objective's own parameters beside it. Strict both ways.

Source of names and layout: llava/train/train.py and llava/model/llava_arch.py (haotian-liu/LLaVA at c121f04); its
config.json is in llava_config.py. Everything is written aside and moved into place, so a killed run leaves the old file
or the new one.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llava_pat.models.llava_config import stage1_config

logger = logging.getLogger(__name__)

PROJECTOR_BIN = "mm_projector.bin"
PROJECTOR_SAFETENSORS = "mm_projector.safetensors"
__all__ = [
    "ProjectorReport",
    "load_objective",
    "load_projector",
    "save_config",
    "save_objective",
    "save_projector",
    "stage1_config",
]

OBJECTIVE_SAFETENSORS = "alignment_objective.safetensors"

_PREFIX = "model.mm_projector."
_MARK = "mm_projector"


@dataclass(frozen=True)
class ProjectorReport:
    """What `load_projector` read."""

    path: Path
    dtype: torch.dtype | None  # as stored; None for `identity`, which stores nothing
    ignored: tuple[str, ...]  # keys of the file that are no projector's, such as model.embed_tokens.weight


def save_projector(projector: nn.Module, out_dir: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes mm_projector.bin (what LLaVA reads) and mm_projector.safetensors, both with keys `model.mm_projector.*`.

    dtype: of the stored tensors; None keeps the projector's. Raises ValueError when a weight is empty, as ZeRO-3 leaves
    them on every rank: gather them first.
    """
    tensors = {_PREFIX + name: tensor for name, tensor in _state(projector, "projector", dtype).items()}
    out_dir = Path(out_dir)
    _write_aside(out_dir / PROJECTOR_BIN, lambda path: torch.save(tensors, path))
    _write_aside(out_dir / PROJECTOR_SAFETENSORS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))


def load_projector(path: str | Path, projector: nn.Module) -> ProjectorReport:
    """Loads a projector that we or LLaVA wrote, in place and cast to the projector's dtype.

    path: a .bin or .safetensors file, or a folder with mm_projector.bin (first, since it is what LLaVA reads) or
    mm_projector.safetensors. As in LLaVA, a key counts from "mm_projector." on, whatever stands before it; keys without
    that text are reported and left alone. Raises ValueError for a file that is no dict of tensors, and for missing,
    surplus or misshapen weights (with both shapes); FileNotFoundError when there is no file.
    """
    file = _projector_file(Path(path))
    stored = _read_tensors(file)
    found: dict[str, Tensor] = {}
    ignored = []
    for key, tensor in stored.items():
        _, mark, name = key.partition(_MARK + ".")
        if not mark:
            ignored.append(key)
        elif name in found:
            raise ValueError(f"{file}: two keys end in {_MARK}.{name}; one of them is {key!r}")
        else:
            found[name] = tensor
    _load_strictly(
        projector, found, f"{file}: the projector", "Is it the projector type and the base models it was trained for?"
    )
    report = ProjectorReport(file, next(iter(found.values())).dtype if found else None, tuple(ignored))
    logger.info(
        "projector from %s: %d tensors, %s; ignored keys: %s", file, len(found), report.dtype, ignored or "none"
    )
    return report


def save_objective(objective: nn.Module, out_dir: str | Path) -> Path | None:
    """Writes the objective's own parameters and buffers to alignment_objective.safetensors; None when it has none.

    Raises ValueError for a name with "mm_projector" in it: LLaVA would take it for the projector's.
    """
    tensors = _state(objective, "objective", None)
    _refuse_projector_names(tensors, "the objective")
    file = Path(out_dir) / OBJECTIVE_SAFETENSORS
    if not tensors:
        file.unlink(missing_ok=True)  # an earlier run's, of another objective
        return None
    _write_aside(file, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    return file


def load_objective(path: str | Path, objective: nn.Module) -> None:
    """Loads what `save_objective` wrote (a file or its folder), strictly. An objective without state needs no file.

    Raises ValueError as `load_projector`, and FileNotFoundError when the objective has state but there is no file.
    """
    file = Path(path)
    file = file / OBJECTIVE_SAFETENSORS if file.is_dir() else file
    wanted = objective.state_dict()
    _refuse_projector_names(wanted, "the objective")
    if not file.exists():
        if wanted:
            raise FileNotFoundError(
                f"{file} is missing; the objective has {len(wanted)} tensors to load: {sorted(wanted)}"
            )
        return
    stored = _read_tensors(file)
    _refuse_projector_names(stored, str(file))
    _load_strictly(objective, stored, f"{file}: the objective", "Is it the objective, with the keywords, of that run?")


def save_config(config: Mapping, out_dir: str | Path) -> None:
    """Writes config.json as transformers does: two spaces, sorted keys, a final newline."""
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    _write_aside(Path(out_dir) / "config.json", lambda path: path.write_text(text, encoding="utf-8"))


def _state(module: nn.Module, what: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copies on the CPU (clones: torch.save of a view would write the whole storage behind it)."""
    state = {}
    for name, tensor in module.state_dict().items():
        if tensor.numel() == 0:
            raise ValueError(
                f"{what}: {name} is empty, so ZeRO-3 holds it in shards. Gather the parameters before saving."
            )
        tensor = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
        state[name] = tensor.clone(memory_format=torch.contiguous_format)
    return state


def _write_aside(file: Path, write: Callable[[Path], object]) -> None:
    """Writes to a neighbour, then replaces: readers never see half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(aside)
        mask = os.umask(0)
        os.umask(mask)
        aside.chmod(0o666 & ~mask)  # safetensors makes its files readable for their owner only
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def _projector_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; expected a projector file or the folder that stage 1 wrote"
            )
        return path
    for name in (PROJECTOR_BIN, PROJECTOR_SAFETENSORS):
        if (path / name).exists():
            return path / name
    raise FileNotFoundError(f"{path} holds neither {PROJECTOR_BIN} nor {PROJECTOR_SAFETENSORS}")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: not a whole safetensors file ({error})") from error
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{file}: not a file of plain tensors, and nothing else is unpickled since that can run code ({reason}). "
            "Expected what torch.save writes for a dict of tensors."
        ) from error
    if not isinstance(stored, dict):
        raise ValueError(f"{file}: holds a {type(stored).__name__}, expected a dict from names to tensors")
    for key, value in stored.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{file}: entry {key!r} is a {type(value).__name__}, expected names and tensors only")
    return stored


def _load_strictly(module: nn.Module, stored: Mapping[str, Tensor], what: str, way_out: str) -> None:
    wanted = module.state_dict()
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or surplus:
        raise ValueError(
            f"{what} does not fit: missing {missing or 'nothing'}, too many {surplus or 'nothing'}. {way_out}"
        )
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape:
            raise ValueError(
                f"{what} does not fit: {name} is {list(stored[name].shape)} in the file and {list(tensor.shape)} in "
                f"the model. {way_out}"
            )
    module.load_state_dict(dict(stored), strict=True)


def _refuse_projector_names(names: Mapping[str, Tensor], where: str) -> None:
    wrong = sorted(name for name in names if _MARK in name)
    if wrong:
        raise ValueError(f"{where}: {wrong} hold {_MARK!r}, and LLaVA would read them as the projector's. Rename them.")
