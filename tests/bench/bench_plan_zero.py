"""Planned against measured memory under DeepSpeed: two processes on this CPU share the states of the mid shape.

    export OMP_NUM_THREADS=1 TORCH_EXTENSIONS_DIR=/tmp/torch_extensions
    torchrun --nproc_per_node 2 tests/bench/bench_plan_zero.py --plan scripts/zero2.json --trains all

Bytes of the first rank's tensors, between steps (all that Python holds) and at the fullest moment of forward and
backward and of the update (what torch's allocator records above that).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import deepspeed  # noqa: E402
import torch  # noqa: E402

from llava_pat.performance.cpu_memory import cpu_peaks  # noqa: E402
from llava_pat.performance.gpus import Gpu  # noqa: E402
from llava_pat.performance.made_up import made_up_batch  # noqa: E402
from llava_pat.performance.planning import Planner, RunConfig  # noqa: E402
from llava_pat.performance.shapes import SHAPES, Recipe, Shape, build_task  # noqa: E402
from llava_pat.performance.states import Sharing  # noqa: E402

MIB = 2**20


def filled(plan: dict, shape: Shape) -> dict:
    """A plan whose "auto" values are as transformers fills them; floats that stand for counts as integers."""
    width = shape.llm.hidden_size
    zero = {key: int(value) if isinstance(value, float) else value for key, value in plan["zero_optimization"].items()}
    zero["reduce_bucket_size"] = width * width
    if zero["stage"] == 3:
        zero["stage3_prefetch_bucket_size"] = int(0.9 * width * width)
        zero["stage3_param_persistence_threshold"] = 10 * width
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": shape.batch_size,
        "gradient_accumulation_steps": 1,
    }


def held() -> int:
    """Bytes of every tensor that Python holds, and of gradients."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asking some objects for their class warns that they are deprecated
        tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True, help="scripts/zero2.json or scripts/zero3.json")
    parser.add_argument("--trains", choices=("projector", "all", "lora"), default="all")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    shape, plan = SHAPES["mid"], json.loads(options.plan.read_text())
    recipe = Recipe(options.trains, shape.dtype, masters=False, checkpointing=options.checkpointing)
    deepspeed.init_distributed("gloo")
    ranks = int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    task = build_task(shape, recipe, "cpu")
    batch = made_up_batch(build_task(shape, recipe, "meta").model, shape.batch_size, shape.text_tokens)
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, foreach=True)
    engine, *_ = deepspeed.initialize(
        model=task, model_parameters=trained, optimizer=optimizer, config=filled(plan, shape)
    )

    def forward_and_backward() -> None:
        engine.backward(engine(batch, step=1, total_steps=2)["loss"])

    for _ in range(2):
        forward_and_backward()
        engine.step()
    of_batch = sum(value.untyped_storage().nbytes() for value in batch.values())
    between = held() - of_batch
    peak_forward = between + cpu_peaks(forward_and_backward)[0]
    peak_update = held() - of_batch + cpu_peaks(engine.step)[0]
    run = RunConfig(
        "mid", recipe.stage, shape, recipe, Sharing.of(plan, ranks), shape.batch_size, shape.batch_size * ranks,
        shape.text_tokens, shape.text_tokens, 576,
    )  # fmt: skip
    memory = Planner(Gpu("this machine", 0.0, 1.0)).memory(run)
    if os.environ["RANK"] == "0":
        measured = max(peak_forward, peak_update)
        print(
            f"{options.plan.stem}, {options.trains}: {memory.in_use / MIB:.1f} planned, {measured / MIB:.1f} measured, "
            f"{memory.in_use / measured - 1:+.1%} (forward and backward {peak_forward / MIB:.1f}, update "
            f"{peak_update / MIB:.1f}); between steps {memory.between_steps / MIB:.1f} planned, "
            f"{between / MIB:.1f} measured MiB"
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
