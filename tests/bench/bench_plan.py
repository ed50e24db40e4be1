"""Planned against measured: what python -m llava_pat.plan foretells, of steps that this machine can make.

    export OMP_NUM_THREADS=1
    python tests/bench/bench_plan.py                  # memory: a busy machine changes nothing
    python tests/bench/bench_plan.py --steps 5        # seconds too: on a machine that does nothing else
    python tests/bench/bench_plan.py --shapes --configs scripts/configs/playground_finetune_qlora.yaml

--shapes: made-up models. --configs: the models that training builds of these YAMLs (checkpoints of stage 1 aside), on
made-up batches. Memory is that of tensors: weights, AdamW's states (foreach, as on a GPU) and the peak that torch's
allocator records over a step, update included. Seconds are planned as work over the rate of matrix products in the same
run, at the utilisation of the shape's first row: as plans for GPUs take it from published hours.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from llava_pat.alignment import plan_objectives, requirements  # noqa: E402
from llava_pat.models.quantized import quantized_layers  # noqa: E402
from llava_pat.performance.cpu_memory import cpu_peaks  # noqa: E402
from llava_pat.performance.gpus import Gpu  # noqa: E402
from llava_pat.performance.made_up import made_up_batch  # noqa: E402
from llava_pat.performance.matrix_rate import matrix_rate  # noqa: E402
from llava_pat.performance.planned_run import read_run  # noqa: E402
from llava_pat.performance.planning import Planner, RunConfig  # noqa: E402
from llava_pat.performance.shapes import SHAPES, Recipe, build_task  # noqa: E402
from llava_pat.performance.states import Sharing  # noqa: E402
from llava_pat.performance.step import Trainee  # noqa: E402
from llava_pat.performance.weightless import stored_bytes  # noqa: E402
from llava_pat.training.arguments import parse_pretrain  # noqa: E402
from llava_pat.training.finetune_arguments import parse_finetune  # noqa: E402
from llava_pat.training.parts import build_parts  # noqa: E402
from llava_pat.training.stages import build_task as task_of_run  # noqa: E402
from llava_pat.training.task import AlignedTraining  # noqa: E402

MIB = 2**20


@dataclass
class Row:
    name: str
    run: RunConfig
    task: AlignedTraining
    needs: Collection[str] = ()  # side data of its objective


def shape_rows(name: str) -> Iterator[Row]:
    shape = SHAPES[name]

    def row(title: str, recipe: Recipe, accumulation: int = 1) -> Row:
        torch.manual_seed(0)
        task = build_task(shape, recipe, "cpu")
        run = RunConfig(
            name, recipe.stage, shape, recipe, Sharing(1), shape.batch_size, shape.batch_size * accumulation,
            shape.text_tokens, shape.text_tokens, task.model.num_patches,
        )  # fmt: skip
        return Row(f"{name}, {title}", run, task, requirements(recipe.objectives))

    for title, trains in (("stage 1", "projector"), ("stage 2", "all"), ("LoRA", "lora")):
        yield row(title, Recipe(trains, shape.dtype))
        yield row(f"{title}, checkpointing", Recipe(trains, shape.dtype, checkpointing=True))
    yield row("stage 2, 2 micro-batches", Recipe("all", shape.dtype), accumulation=2)
    yield row("stage 1 with PAT", Recipe("projector", shape.dtype, objectives=plan_objectives("pat", {}, 5.0, None)))


def config_row(config: Path, text_tokens: int) -> Row:
    planned = read_run(config, (), 1, None, text_tokens)
    run = replace(planned, most_text_tokens=text_tokens, global_batch=planned.micro_batch)
    with tempfile.TemporaryDirectory(prefix="llava-") as out:
        argv = [f"--config={config}", f"--output_dir={out}", "--eval_data_path=", "--eval_regions_path="]
        if run.stage == 1:
            arguments = parse_pretrain([*argv, "--eval_strategy=no"])
        else:
            arguments = parse_finetune([*argv, "--pretrain_mm_mlp_adapter=none"])
    task = task_of_run(arguments, build_parts(arguments)).train()
    if run.recipe.checkpointing:
        task.model.gradient_checkpointing_enable()
    return Row(config.stem, run, task, requirements(arguments.alignment.plan()))


def measured_bytes(row: Row, trainee: Trainee, batches: list[dict[str, Tensor]]) -> int:
    """Of all tensors at the fullest moment of a step."""
    for group in trainee.optimizer.param_groups:
        group["foreach"] = True
    trainee.step(batches)  # makes the optimizer's states
    peak, _ = cpu_peaks(lambda: trainee.step(batches))
    held = [*row.task.parameters(), *row.task.buffers(), *constants(row.task)]
    held += [value for state in trainee.optimizer.state.values() for value in state.values()]
    return stored_bytes(held) + peak


def constants(task: AlignedTraining) -> Iterator[Tensor]:
    """What 4-bit weights keep beside themselves."""
    for _, layer in quantized_layers(task.model.llm):
        state = layer.weight.quant_state
        yield state.absmax
        if state.nested:
            yield state.state2.absmax


def seconds(trainee: Trainee, batches: list[dict[str, Tensor]], steps: int) -> float:
    """Of the fastest of several steps: what else runs only makes them slower."""
    taken = []
    for _ in range(steps):
        started = time.perf_counter()
        trainee.step(batches)
        taken.append(time.perf_counter() - started)
    return min(taken)


def compare(row: Row, steps: int, utilisation: float | None) -> dict:
    run, cpu = row.run, torch.device("cpu")
    trainee = Trainee(row.task, run.recipe, cpu)
    batch = made_up_batch(row.task.model, run.micro_batch, run.most_text_tokens, row.needs)
    batches = [batch] * run.accumulation
    planner = Planner(Gpu("this machine", 0.0, 1.0), 1.0)
    found = {
        "row": row.name,
        "planned_bytes": planner.memory(run).in_use,
        "measured_bytes": measured_bytes(row, trainee, batches),
    }
    found["memory_off"] = found["planned_bytes"] / found["measured_bytes"] - 1
    if steps:
        rate, taken = matrix_rate(cpu, run.recipe.dtype), seconds(trainee, batches, steps)
        found |= {"matrix_rate": rate, "measured_seconds": taken}
        found["utilisation"] = planner.step_seconds(run) / rate / taken
        found["planned_seconds"] = planner.step_seconds(run) / rate / (utilisation or found["utilisation"])
        found["seconds_off"] = found["planned_seconds"] / taken - 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=("playground", "mid"), default=["playground", "mid"])
    parser.add_argument("--configs", nargs="*", type=Path, default=[], help="YAMLs whose models this machine holds")
    parser.add_argument("--text_tokens", type=int, default=24, help="of --configs' batches (default: 24)")
    parser.add_argument("--steps", type=int, default=0, help="timed steps of each row of --shapes (default: none)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    print(f"{'':40}{'planned':>10}{'measured':>10}  MiB of tensors" + ("  seconds" if options.steps else ""))
    results = []
    for shape in options.shapes:
        utilisation = None
        for row in shape_rows(shape):
            results.append(compare(row, options.steps, utilisation))
            utilisation = results[-1].get("utilisation") if utilisation is None else utilisation
            show(results[-1])
    for config in options.configs:
        results.append(compare(config_row(config, options.text_tokens), 0, None))
        show(results[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def show(found: dict) -> None:
    planned, measured = found["planned_bytes"] / MIB, found["measured_bytes"] / MIB
    line = f"{found['row']:40}{planned:10.1f}{measured:10.1f}{found['memory_off']:+8.1%}"
    if "measured_seconds" in found:
        line += (
            f"{found['planned_seconds']:10.3f}{found['measured_seconds']:8.3f}{found['seconds_off']:+8.1%}  at "
            f"{found['utilisation']:.2f} of {found['matrix_rate'] / 1e12:.3f} TFLOP/s"
        )
    print(line, flush=True)
    gc.collect()


if __name__ == "__main__":
    main()
