"""Where a training step's time, memory and work go, on made-up weights of real size: nothing is downloaded.

    python -m llava_pat.profile --shape mid                       # stage 1, seconds on two cores
    python -m llava_pat.profile --shape playground --stage 2 --alignment pat
    python -m llava_pat.profile --shape llava-v1.5-7b             # on a GPU; on a CPU: work and memory, nothing is run

Timed is the project's own training module (training/task.py). docs/performance.md explains the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from llava_pat.alignment import plan_objectives
from llava_pat.performance.profile_text import profile_text
from llava_pat.performance.profiling import Load, profile_step
from llava_pat.performance.shapes import SHAPES, Recipe

_TOO_LARGE_FOR_A_CPU = 1e9  # parameters


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr."""
    options = _parser().parse_args(arguments)
    transformers.logging.set_verbosity_error()
    shape = SHAPES[options.shape]
    try:
        recipe = Recipe(
            trains="projector" if options.stage == 1 else "lora" if options.lora else "all",
            dtype=shape.dtype if options.dtype is None else getattr(torch, options.dtype),
            checkpointing=options.checkpointing,
            padding_free=options.padding_free,
            attention=options.attention,
            objectives=plan_objectives(options.alignment, {}, 5.0, None),
        )
        load = Load(options.batch_size or shape.batch_size, options.text_tokens or shape.text_tokens, options.uneven)
        profile = profile_step(shape, recipe, load, options.device or _device(shape.llm), options.steps)
    except (ValueError, RuntimeError) as error:
        print(f"profile: {error}", file=sys.stderr)
        return 2
    print(profile_text(profile))
    if options.json:
        options.json.write_text(json.dumps(profile.as_json(), indent=2) + "\n", encoding="utf-8")
    return 0


def _device(llm: transformers.PretrainedConfig) -> str:
    if torch.cuda.is_available():
        return "cuda"
    about = 12 * llm.hidden_size**2 * llm.num_hidden_layers  # a decoder's usual proportions
    return "meta" if about > _TOO_LARGE_FOR_A_CPU else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_pat.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="mid", help="sizes of the model (default: mid)")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="1: the projector trains; 2: all of it")
    parser.add_argument("--lora", action="store_true", help="stage 2 by LoRA (r 128)")
    parser.add_argument("--alignment", default="none", help="objective, as in training (default: none)")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--padding_free", action="store_true", help="sequences end to end, as in training")
    parser.add_argument("--attention", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: the shape's")
    parser.add_argument("--batch_size", type=int, help="sequences of a micro-batch (default: the shape's)")
    parser.add_argument("--text_tokens", type=int, help="supervised tokens behind the image (default: the shape's)")
    parser.add_argument("--uneven", action="store_true", help="captions of all lengths, padded")
    parser.add_argument("--device", choices=("cpu", "cuda", "meta"), help="meta: nothing is run (default: the GPU if "
        "there is one, else the CPU; meta for 7B and 13B on a CPU)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one to warm up (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
