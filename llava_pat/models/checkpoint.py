"""Stage-1 files: the projector under LLaVA's key names, and the objective's own parameters beside it. Strict both ways.

Source of names and layout: llava/train/train.py and llava/model/llava_arch.py (haotian-liu/LLaVA at c121f04); its
config.json is in llava_config.py. Everything is written aside and moved into place, so a killed run leaves the old file
or the new one.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llava_pat.models.llava_config import stage1_config
from llava_pat.models.shards import LazyTensor, has_weights, is_local, read_file, tensor_files

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
    "write_projector",
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
    state = _state(projector, "projector", dtype)
    write_projector({_PREFIX + name: tensor for name, tensor in state.items()}, out_dir)


def write_projector(tensors: Mapping[str, Tensor], out_dir: str | Path) -> None:
    """`save_projector` for tensors that already have their names, `model.mm_projector.*`, and lie on the CPU."""
    tensors, out_dir = dict(tensors), Path(out_dir)
    write_aside(out_dir / PROJECTOR_BIN, lambda path: torch.save(tensors, path))
    write_aside(out_dir / PROJECTOR_SAFETENSORS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))


def load_projector(path: str | Path, projector: nn.Module) -> ProjectorReport:
    """Loads a projector that we or LLaVA wrote, in place and cast to the projector's dtype.

    path: a .bin or .safetensors file; a stage-1 folder with mm_projector.bin (first, since it is what LLaVA reads) or
    mm_projector.safetensors; or a full model in LLaVA's layout, folder or hub id, whose own weights are read then (they
    are what LLaVA evaluates). As in LLaVA, a key counts from "mm_projector." on, whatever stands before it; keys
    without that text are reported and left alone. Raises ValueError for a file that is no dict of tensors, and for
    missing, surplus or misshapen weights (with both shapes); FileNotFoundError when there is no file.
    """
    file, stored = _projector_source(path)
    found: dict[str, LazyTensor] = {}
    ignored = []
    for key, tensor in stored.items():
        _, mark, name = key.partition(_MARK + ".")
        if not mark:
            ignored.append(key)
        elif name in found:
            raise ValueError(f"{file}: two keys end in {_MARK}.{name}; one of them is {key!r}")
        else:
            found[name] = tensor
    way_out = "Is it the projector type and the base models it was trained for?"
    _load_strictly(projector, found, f"{file}: the projector", way_out)
    report = ProjectorReport(file, next(iter(found.values())).dtype if found else None, tuple(ignored))
    logger.info(
        "projector from %s: %d tensors, %s; %d other keys left alone", file, len(found), report.dtype, len(ignored)
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
    write_aside(file, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
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
    stored = read_file(file)
    _refuse_projector_names(stored, str(file))
    _load_strictly(objective, stored, f"{file}: the objective", "Is it the objective, with the keywords, of that run?")


def save_config(config: Mapping, out_dir: str | Path) -> None:
    """Writes config.json as transformers does: two spaces, sorted keys, a final newline."""
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_aside(Path(out_dir) / "config.json", lambda path: path.write_text(text, encoding="utf-8"))


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


def write_aside(file: Path, write: Callable[[Path], object]) -> None:
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


def _projector_source(path: str | Path) -> tuple[Path, dict[str, LazyTensor]]:
    """What to call the source, and its tensors."""
    if Path(path).is_file():
        return Path(path), read_file(Path(path))
    if not Path(path).is_dir():
        if is_local(path):
            raise FileNotFoundError(
                f"{path} does not exist; expected a projector file, or the folder of stage 1 or of a whole model"
            )
        return Path(path), tensor_files(path)
    if has_weights(path):
        return Path(path), tensor_files(path)
    for name in (PROJECTOR_BIN, PROJECTOR_SAFETENSORS):
        if (Path(path) / name).exists():
            return Path(path) / name, read_file(Path(path) / name)
    raise FileNotFoundError(f"{path} holds neither {PROJECTOR_BIN} nor {PROJECTOR_SAFETENSORS}, nor a model's weights")


def _load_strictly(module: nn.Module, stored: Mapping[str, LazyTensor], what: str, way_out: str) -> None:
    wanted = module.state_dict()
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or surplus:
        raise ValueError(
            f"{what} does not fit: missing {missing or 'nothing'}, too many {surplus or 'nothing'}. {way_out}"
        )
    for name, tensor in wanted.items():
        if stored[name].shape != tuple(tensor.shape):
            raise ValueError(
                f"{what} does not fit: {name} is {list(stored[name].shape)} in the file and {list(tensor.shape)} in "
                f"the model. {way_out}"
            )
    values = {name: tensor.read() for name, tensor in stored.items()}
    for name, tensor in wanted.items():
        if tensor.is_floating_point() and not (
            values[name].is_floating_point() and values[name].float().isfinite().all()
        ):
            raise ValueError(f"{what}: {name} holds NaN, infinity or no numbers ({values[name].dtype}). {way_out}")
    module.load_state_dict(values, strict=True)


def _refuse_projector_names(names: Iterable[str], where: str) -> None:
    wrong = sorted(name for name in names if _MARK in name)
    if wrong:
        raise ValueError(f"{where}: {wrong} hold {_MARK!r}, and LLaVA would read them as the projector's. Rename them.")
