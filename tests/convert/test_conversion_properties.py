"""Weights of any bits, dtypes and cuts into files: there and back is the same to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llava_pat.convert.command import main
from llava_pat.models.shards import tensor_files

_EXAMPLES = max(4, settings().max_examples // 20)  # a conversion takes tenths of a second
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@settings(max_examples=_EXAMPLES)
@given(
    st.integers(0, 2**31),
    st.sampled_from(sorted(_BITS, key=str)),
    st.sampled_from(["5GB", "20KB", "1KB"]),
    st.booleans(),
)
def test_there_and_back_is_the_same_to_the_bit(
    world: Path, tmp_path_factory, seed: int, dtype: torch.dtype, shard: str, strange: bool
) -> None:
    """strange: any bits at all, so NaN and infinity among them."""
    folder = tmp_path_factory.mktemp("conversion")
    for name in ("clip", "llm"):
        (folder / name).symlink_to(world / name)
    first, hf, back = (folder / name for name in ("llava-v1.5-first", "hf", "llava-v1.5-back"))
    shutil.copytree(world / "llava-v1.5-tiny", first)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in load_file(first / "model.safetensors").items():
        if "tower" in name:
            weights[name] = tensor
        elif strange:
            bits = torch.randint(-(2**15), 2**15, tensor.shape, generator=generator)
            weights[name] = bits.to(_BITS[dtype]).view(dtype)
        else:
            weights[name] = torch.randn(tensor.shape, generator=generator).to(dtype)
    save_file(weights, first / "model.safetensors", {"format": "pt"})
    assert main([str(first), str(hf), "--no-verify", "--max_shard_size", shard]) == 0
    assert main([str(hf), str(back), "--no-verify", "--max_shard_size", shard]) == 0
    found = tensor_files(back)
    assert found.keys() == {name for name in weights if "tower" not in name}
    for name, tensor in found.items():
        again, original = tensor.read(), weights[name]
        assert again.dtype == original.dtype and torch.equal(again.view(_BITS[dtype]), original.view(_BITS[dtype]))
    shutil.rmtree(folder)
