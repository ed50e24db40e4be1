"""Weight files as lazy tensors: read one at a time, written one at a time, so that a 70B folder needs little memory.

Reads safetensors and torch.save files, sharded (with an index) or not; writes safetensors shards under transformers'
names. Pickles are read with weights_only, so nothing in them runs. Names and layout of files: transformers' own.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from llava_pat.models.json_file import read_json

SAFE_FILE, BIN_FILE = "model.safetensors", "pytorch_model.bin"
SAFE_INDEX, BIN_INDEX = f"{SAFE_FILE}.index.json", f"{BIN_FILE}.index.json"
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of dtypes."""
_DAMAGED = (
    pickle.UnpicklingError, EOFError, RuntimeError, LookupError, AttributeError, TypeError, ValueError, ArithmeticError,
    AssertionError, struct.error,
)  # fmt: skip
"""What torch.load raises for bytes that are no pickle of tensors, as many tries with changed bytes found."""
_GLOBAL = re.compile(r"GLOBAL (\w+(?:\.\w+)+)")
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is somewhere else: shape and dtype are known, `read` fetches a copy to the CPU."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    where: str = "memory"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def to(self, dtype: torch.dtype | None) -> LazyTensor:
        """Cast on reading; integers stay."""
        if dtype is None or dtype == self.dtype or not self.dtype.is_floating_point:
            return self
        return LazyTensor(self.shape, dtype, lambda: self.read().to(dtype), self.where)


def lazy(tensor: Tensor) -> LazyTensor:
    """A tensor in memory as a LazyTensor."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().to("cpu"))


# ---- reading


def tensor_files(folder: str | Path) -> dict[str, LazyTensor]:
    """All weights of a model folder (or hub id), by the names in its files.

    Takes model.safetensors, its index, pytorch_model.bin, its index: the first there is, as transformers does. Raises
    FileNotFoundError for a folder without weights or with a missing shard; ValueError for a truncated shard, a pickle
    of something else than tensors, and an index that disagrees with its shards.
    """
    for name, index_name in ((SAFE_FILE, SAFE_INDEX), (BIN_FILE, BIN_INDEX)):
        file = find_file(folder, name)
        if file is not None:
            return read_file(file)
        index = find_file(folder, index_name)
        if index is not None:
            return _read_index(folder, index)
    raise FileNotFoundError(
        f"{folder} holds no weights: expected {SAFE_FILE}, {BIN_FILE}, or shards with {SAFE_INDEX} or {BIN_INDEX}"
    )


def find_file(folder: str | Path, name: str) -> Path | None:
    """The file in a folder, or in the hub's cache for a hub id; None when it has none of that name."""
    if Path(folder).is_dir():
        file = Path(folder) / name
        return file if file.is_file() else None
    try:
        found = cached_file(str(folder), name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"{folder} is no folder here, and not readable as a hub id: {reason}") from error
    return None if found is None else Path(found)


def has_weights(folder: str | Path) -> bool:
    """Whether a folder holds a model's weights, whole or sharded."""
    return any((Path(folder) / name).is_file() for name in (SAFE_FILE, SAFE_INDEX, BIN_FILE, BIN_INDEX))


def is_local(name_or_path: str | Path) -> bool:
    """Whether it can only be a path: a hub id is `name` or `owner/name`."""
    text = str(name_or_path)
    looks = text.startswith(("/", ".", "~")) or text.count("/") > 1 or text.endswith((".bin", ".safetensors"))
    return looks or isinstance(name_or_path, Path)


def read_file(file: Path) -> dict[str, LazyTensor]:
    """The tensors of one .safetensors or torch.save file. Errors as `tensor_files`."""
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)


def _read_index(folder: str | Path, index: Path) -> dict[str, LazyTensor]:
    try:
        places = read_json(index).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{index}: not an index of shards ({error})") from error
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: not an index of shards; expected a 'weight_map' from names to files")
    shards: dict[str, dict[str, LazyTensor]] = {}
    for name in sorted(set(places.values())):
        file = find_file(folder, name) if Path(name).name == name else None
        if file is None:
            raise FileNotFoundError(
                f"{index} names the shard {name}, which is missing. The folder is incomplete: copy it again"
            )
        shards[name] = read_file(file)
    for key, name in places.items():
        if key not in shards[name]:
            raise ValueError(f"{index}: says that {name} holds {key}, but it does not; index and shards disagree")
    for name, tensors in shards.items():
        extra = sorted(key for key in tensors if places.get(key) != name)
        if extra:
            raise ValueError(f"{index}: does not say that {name} holds {extra[:3]}; index and shards disagree")
    return {key: shards[name][key] for key, name in places.items()}


def _read_safetensors(file: Path) -> dict[str, LazyTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118: not a dict
            return {
                key: LazyTensor(
                    tuple(part.get_shape()),
                    _dtype(part.get_dtype(), key, file),
                    _safetensors_reader(file, key),
                    str(file),
                )
                for key, part in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error}). Truncated? Copy it again") from error


def _dtype(code: str, key: str, file: Path) -> torch.dtype:
    if code not in DTYPES:
        raise ValueError(f"{file}: {key} is stored as {code}, which is not read here; known are {', '.join(DTYPES)}")
    return DTYPES[code]


def _safetensors_reader(file: Path, key: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        # Opened for each tensor, and cloned: an open file keeps the pages of every tensor read from it in memory.
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(key).clone()

    return read


def _read_pickle(file: Path) -> dict[str, LazyTensor]:
    stored = _load_pickle(file)
    return {
        key: LazyTensor(tuple(tensor.shape), tensor.dtype, _pickle_reader(file, key), str(file))
        for key, tensor in stored.items()
    }


def _pickle_reader(file: Path, key: str) -> Callable[[], Tensor]:
    return lambda: _load_pickle(file)[key].clone(memory_format=torch.contiguous_format)


def _load_pickle(file: Path) -> dict[str, Tensor]:
    facts = file.stat()  # a file that was written anew is another one
    return _load_this_pickle(file, facts.st_ino, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=1)  # the shard that is being read; its tensors are mapped, not loaded
def _load_this_pickle(file: Path, inode: int, modified: int, size: int) -> dict[str, Tensor]:
    return load_pickle(file, mmap=_is_zip(file))


def load_pickle(file: Path, mmap: bool = False) -> dict[str, Tensor]:
    """A torch.save file that holds a dict from names to tensors, on the CPU; nothing in it is executed.

    Raises ValueError for anything else.
    """
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except _DAMAGED as error:
        asked = _GLOBAL.search(str(error))
        reason = f"it asks for {asked[1]}" if asked else str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{file}: not a file of plain tensors, and nothing else is unpickled since that can run code ({reason}). "
            "Expected what torch.save writes for a dict of tensors."
        ) from error
    if not isinstance(stored, dict):
        raise ValueError(f"{file}: holds a {type(stored).__name__}, expected a dict from names to tensors")
    for key, value in stored.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{file}: entry {key!r} is a {type(value).__name__}, expected names and tensors only")
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
            raise ValueError(
                f"{file}: {key} is no plain tensor ({value.layout}, {value.dtype}, on {value.device.type})"
            )
    return stored


def _is_zip(file: Path) -> bool:
    """torch.save's format since 1.6; only that one can be mapped."""
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def fit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, LazyTensor], what: str) -> dict[str, LazyTensor]:
    """`found` in the order of `expected`. Raises ValueError for missing, surplus and misshapen weights."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        raise ValueError(
            f"{what} does not fit its config.json: {len(missing)} missing {missing[:4]}, {len(surplus)} unexpected "
            f"{surplus[:4]}. Is the folder complete, and its config.json its own?"
        )
    for key, shape in expected.items():
        if found[key].shape != shape:
            raise ValueError(
                f"{what} does not fit its config.json: {key} is {list(found[key].shape)} in {found[key].where}, and "
                f"{list(shape)} by the config. Is it the projector, tower or language model of another size?"
            )
    return {key: found[key] for key in expected}


# ---- writing


def shard_bytes(size: int | str) -> int:
    """ "5GB", "500MB" or a number of bytes -> bytes (powers of 1000, as transformers counts). Raises ValueError."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+)\s*(GB|MB|KB)\s*", size, re.IGNORECASE)
    if match is None:
        raise ValueError(f"shard size {size!r} is not understood; expected a number with a unit, such as 5GB or 500MB")
    return int(match.group(1)) * {"GB": 10**9, "MB": 10**6, "KB": 10**3}[match.group(2).upper()]


def plan_shards(tensors: Mapping[str, LazyTensor], max_shard_size: int | str) -> list[list[str]]:
    """Names in order, cut into shards of at most that many bytes (a larger tensor gets one of its own)."""
    limit = shard_bytes(max_shard_size)
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def write_shards(
    folder: str | Path,
    tensors: Mapping[str, LazyTensor],
    max_shard_size: int | str = "5GB",
    *,
    write: bool = True,
    progress: Callable[[int], object] | None = None,
) -> list[Path]:
    """Writes model.safetensors, or shards and their index, holding one tensor in memory at a time. Returns the files.

    Everything is written aside and renamed at the end, the index last, so a killed run leaves no folder that looks
    whole. Weight files of an earlier write that are not this one's are removed then.
    write: False reads every tensor in the same order and writes nothing: under ZeRO-3 all ranks must gather together.
    progress: called with the bytes of each tensor that is done.
    """
    folder = Path(folder)
    shards = plan_shards(tensors, max_shard_size)
    names = [SAFE_FILE] if len(shards) == 1 else [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]  # fmt: skip
    asides = [folder / f".{name}.{os.getpid()}" for name in names]
    if write:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        for aside, keys in zip(asides, shards, strict=True):
            # Wide dtypes first: readers map the file, and a float32 must not start at an odd address.
            keys.sort(key=lambda key: -tensors[key].dtype.itemsize)
            _write_shard(aside if write else None, {key: tensors[key] for key in keys}, progress)
        if not write:
            return []
        _remove_earlier(folder, keep=set(names))
        for aside, name in zip(asides, names, strict=True):
            os.replace(aside, folder / name)
    finally:
        if write:
            for aside in asides:
                aside.unlink(missing_ok=True)
    if len(shards) > 1:
        _write_index(folder, tensors, dict(zip(names, shards, strict=True)))
    return [folder / name for name in names]


def _write_shard(
    file: Path | None, tensors: Mapping[str, LazyTensor], progress: Callable[[int], object] | None
) -> None:
    if file is None:
        for tensor in tensors.values():
            tensor.read()
        return
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers 4.37 refuses a file without it
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            value = tensor.read()
            if tuple(value.shape) != tensor.shape or value.dtype != tensor.dtype:
                raise ValueError(
                    f"{name}: read as {value.dtype} {list(value.shape)}, announced as {tensor.dtype} "
                    f"{list(tensor.shape)} ({tensor.where})"
                )
            opened.write(memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy()))
            if progress is not None:
                progress(tensor.nbytes)
        opened.flush()
        os.fsync(opened.fileno())


def _remove_earlier(folder: Path, keep: set[str]) -> None:
    """The index first: it is what makes shards a model."""
    (folder / SAFE_INDEX).unlink(missing_ok=True)
    for file in folder.iterdir():
        if _OURS.fullmatch(file.name) and file.name not in keep:
            file.unlink()


def _write_index(folder: Path, tensors: Mapping[str, LazyTensor], shards: Mapping[str, list[str]]) -> None:
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": dict(sorted((key, name) for name, keys in shards.items() for key in keys)),
    }
    aside = folder / f".{SAFE_INDEX}.{os.getpid()}"
    aside.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, folder / SAFE_INDEX)
