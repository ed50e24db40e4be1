"""What a checkpoint is, as one number."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llava_pat.data.hashes import file_sha256

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_SETTINGS = ("config.json", "tokenizer.model", "tokenizer.json", "adapter_config.json", "open_clip_config.json")


def folder_hash(folder: str | Path) -> str:
    """sha256 over the sorted (name, sha256) of a folder's weight and settings files; a hub id stays the id."""
    folder = Path(folder)
    if not folder.is_dir():
        return f"hub id {folder}"
    files = sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS or file.name in _SETTINGS)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
