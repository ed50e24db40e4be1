"""Peak memory and time of a conversion, on a made-up model of 2e9 parameters in LLaVA's layout (bf16, random).

    python tests/bench/bench_convert.py /tmp/bench [--layers 24] [--max_shard_size 1GB] [--keep]

Needs three times the model's size on the disk (13 GB). The bound: 1.5 times the largest shard, plus 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig

from llava_pat.models.checkpoint import save_config
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.llava_layout import PROJECTOR_PREFIX, copy_tokenizer
from llava_pat.models.shards import LazyTensor, tensor_files, write_shards
from llava_pat.models.source import projector_shapes

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "tests" / "assets" / "llava_written"


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> LazyTensor:
    return LazyTensor(shape, dtype, lambda: torch.empty(shape, dtype=dtype).uniform_(-0.05, 0.05))


def make_up(folder: Path, layers: int, max_shard_size: str) -> None:
    """CLIP-L/336's sizes, a Llama of width 2560 with 32,000 words, as Vicuna's (so <image> needs new rows)."""
    tower = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    CLIPVisionModel(tower).to(torch.bfloat16).save_pretrained(folder / "clip")
    processor = json.loads((ASSETS / "clip" / "preprocessor_config.json").read_text())
    processor |= {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(processor))
    text = LlamaConfig(
        hidden_size=2560, intermediate_size=6912, num_hidden_layers=layers, num_attention_heads=20,
        num_key_value_heads=20, vocab_size=32000, max_position_embeddings=4096,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {k: tuple(t.shape) for k, t in AutoModelForCausalLM.from_config(text).state_dict().items()}
    shapes |= projector_shapes("mlp2x_gelu", 1024, 2560)
    assert any(key.startswith(PROJECTOR_PREFIX) for key in shapes)
    source = folder / "llava-v1.5-2b"
    write_shards(source, {k: random_tensor(s, torch.bfloat16) for k, s in shapes.items()}, max_shard_size)
    copy_tokenizer(ASSETS / "llm", source, 2048)
    grow_tokenizer(source / "tokenizer.model", text.vocab_size)
    config = finetune_config(text, vision_tower="../clip", vision_width=1024, dtype="bfloat16")
    save_config(config | {"torch_dtype": "bfloat16"}, source)


def grow_tokenizer(file: Path, words: int) -> None:
    """Fills a sentencepiece model up with pieces of one far-off character each."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    missing = words - len(proto.pieces)
    known = {piece.piece for piece in proto.pieces}
    letters = (chr(code) for code in range(0x20000, 0x30000) if chr(code) not in known)
    for number in range(missing):
        proto.pieces.add(piece=next(letters), score=-1e4 - number, type=1)
    proto.trainer_spec.vocab_size = words
    file.write_bytes(proto.SerializeToString())


def measure(source: Path, out: Path, *flags: str) -> None:
    """One conversion as a user starts it; prints its peak resident set and the bound."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "llava_pat.convert", str(source), str(out), *flags]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    # of the largest child so far: the model was made up in this process, so they are all conversions
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    shard = max(file.stat().st_size for folder in (source, out) for file in folder.glob("model*.safetensors"))
    bound = 1.5 * shard + 1e9
    total = sum(tensor.nbytes for tensor in tensor_files(out).values())
    print(
        f"{source.name} -> {out.name}: {total / 1e9:.2f} GB written and compared in {seconds:.0f} s; peak "
        f"{peak / 1e9:.2f} GB, largest shard {shard / 1e9:.2f} GB, bound {bound / 1e9:.2f} GB",
        flush=True,
    )
    if peak > bound:
        raise SystemExit("over the bound")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--max_shard_size", default="1GB")
    parser.add_argument("--keep", action="store_true", help="leave the made-up models there")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    make_up(arguments.folder, arguments.layers, arguments.max_shard_size)
    source = arguments.folder / "llava-v1.5-2b"
    parameters = sum(t.nbytes // t.dtype.itemsize for t in tensor_files(source).values())
    print(f"{parameters / 1e9:.2f}e9 parameters (language model and projector)", flush=True)
    size = ("--max_shard_size", arguments.max_shard_size, "--no-verify")
    measure(source, arguments.folder / "hf", *size)
    measure(arguments.folder / "hf", arguments.folder / "llava-v1.5-back", *size)
    if not arguments.keep:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
