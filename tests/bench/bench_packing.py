"""A training step with padded batches and with sequences end to end (--padding_free True), side by side.

    export OMP_NUM_THREADS=1
    python tests/bench/bench_packing.py scripts/configs/playground_finetune.yaml --json /tmp/packing.json
    python tests/bench/bench_packing.py scripts/configs/playground_pat.yaml --layouts padded free block

Forward and backward of one micro-batch in the training module, on batches that the run's own sampler makes (flags that
are not this program's are the stage's). What does not depend on the layout (loading, optimizer) is left out. Every
batch is taken in each layout in turn, then in reverse, so that a busy machine slows all of them; a ratio is of one
batch in one round. --mid puts made-up models of bench_step.py's middle shape in their place (bf16). CPU: seconds of
this process, which say more on a machine that others use. Layouts:

    padded   as without the flag
    causal   padded, but the attention is told nothing of the padding: causal as it is, no word looks at what follows
    free     --padding_free True
    block    end to end, but by transformers' own block mask of the whole row: what its sdpa would do by itself
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.utils.data import BatchSampler, RandomSampler, Sampler  # noqa: E402
from transformers import set_seed  # noqa: E402

from llava_pat.data.collate import Collator  # noqa: E402
from llava_pat.models.sequence_attention import BY_SEQUENCE  # noqa: E402
from llava_pat.models.vlm import VisionLanguageModel  # noqa: E402
from llava_pat.performance.shapes import SHAPES, Recipe  # noqa: E402
from llava_pat.performance.shapes import build_task as build_made_up  # noqa: E402
from llava_pat.training.arguments import parse_pretrain  # noqa: E402
from llava_pat.training.finetune_arguments import FinetuneArguments, parse_finetune  # noqa: E402
from llava_pat.training.order import train_sampler  # noqa: E402
from llava_pat.training.parts import Parts, build_parts  # noqa: E402
from llava_pat.training.stages import build_task  # noqa: E402
from llava_pat.training.task import AlignedTraining  # noqa: E402

LAYOUTS = {"padded": (False, "sdpa"), "causal": (False, "sdpa"), "free": (True, BY_SEQUENCE), "block": (True, "sdpa")}
MID = SHAPES["mid"]


def parse_stage(config: Path, flags: list[str], out: str):
    argv = [f"--config={config}", f"--output_dir={out}", "--eval_data_path=", "--eval_regions_path=", *flags]
    if "finetune" not in config.name:
        return parse_pretrain([*argv, "--eval_strategy=no"])
    return parse_finetune([*argv, "--pretrain_mm_mlp_adapter=none"])


def middle_model(trains: bool) -> VisionLanguageModel:
    torch.manual_seed(0)
    return build_made_up(MID, Recipe("all" if trains else "projector", MID.dtype), "cpu").model


def batches_of(arguments, parts: Parts, count: int) -> list[dict[str, torch.Tensor]]:
    """Some of the micro-batches of the first epoch, drawn over all of it."""
    sampler: Sampler[int] | None = None
    if isinstance(arguments, FinetuneArguments):
        sampler = train_sampler(arguments.training, parts)
    generator = torch.Generator().manual_seed(0)
    if sampler is None:
        sampler = RandomSampler(parts.train, generator=generator)
    all_of_them = list(BatchSampler(sampler, arguments.training.train_batch_size, drop_last=True))
    chosen = torch.randperm(len(all_of_them), generator=generator)[:count].tolist()
    return [parts.collator([parts.train[index] for index in all_of_them[place]]) for place in chosen]


def step(task: AlignedTraining, batch: dict[str, torch.Tensor], layout: str) -> tuple[float, float, float]:
    """CPU seconds, wall seconds, loss."""
    free, attention = LAYOUTS[layout]
    task.model.llm.set_attn_implementation(attention)
    task.model.padding_free = free
    if layout == "causal":
        batch = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    task.zero_grad()
    wall, cpu = time.perf_counter(), time.process_time()
    loss = task(batch, step=1, total_steps=2)["loss"]
    loss.backward()
    return time.process_time() - cpu, time.perf_counter() - wall, loss.item()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", type=Path, help="a YAML of either stage")
    add("--batches", type=int, default=4, help="micro-batches")
    add("--repeats", type=int, default=3, help="rounds over them")
    add(
        "--layouts", nargs="+", choices=LAYOUTS, default=["padded", "causal", "free"], help="the first is compared with"
    )
    add("--mid", action="store_true", help="made-up models of a middle shape")
    add("--json", type=Path, help="write the figures there")
    options, flags = parser.parse_known_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="llava-") as scratch:
        arguments = parse_stage(options.config, flags, scratch)
    set_seed(arguments.training.seed)
    parts = build_parts(arguments)
    second = isinstance(arguments, FinetuneArguments)
    if options.mid:
        model = middle_model(trains=second)
        collator = Collator(model.num_patches, parts.tokenizer.pad_token_id, arguments.training.model_max_length)
        parts = parts._replace(model=model, collator=collator)
        parts.train.regions = None
        arguments.alignment.alignment, arguments.alignment.alignment_args = "none", {}
    task = build_task(arguments, parts)
    batches = batches_of(arguments, parts, options.batches)
    if options.mid:
        side = parts.model.image_size
        for batch in batches:
            batch["pixel_values"] = torch.zeros(len(batch["pixel_values"]), 3, side, side)
    layouts = options.layouts
    for name in layouts:
        step(task, batches[0], name)  # not counted
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in layouts}
    with torch.autocast("cpu", torch.bfloat16, enabled=options.mid):
        for turn in range(options.repeats):
            for batch in batches:
                for name in layouts if turn % 2 == 0 else layouts[::-1]:
                    taken[name].append(step(task, batch, name))
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    positions = sum(batch["attention_mask"].numel() for batch in batches)
    result = {
        "command": " ".join(sys.argv), "stage": 2 if second else 1, "batches": len(batches),
        "batch_size": arguments.training.train_batch_size, "padding": 1 - real / positions, "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(), "rows": {},
    }  # fmt: skip
    print(f"\n{real} positions in {len(batches)} batches, {result['padding']:.1%} padding beside them")
    print(f"{'':8s} {'CPU, s':>20s} {'times as fast, CPU':>22s} {'wall':>22s}  loss differs by")
    for name in layouts:
        row = {"cpu_s": spread([cpu for cpu, _, _ in taken[name]])}
        for k, clock in enumerate(("cpu", "wall")):
            pairs = zip(taken[layouts[0]], taken[name], strict=True)
            row[f"ratio_{clock}"] = spread([theirs[k] / ours[k] for theirs, ours in pairs])
        pairs = zip(taken[layouts[0]], taken[name], strict=True)
        row["loss_difference"] = max(abs(ours[2] / theirs[2] - 1) for theirs, ours in pairs)
        result["rows"][name] = row
        cells = [f"{row[key]['median']:.2f} ({row[key]['min']:.2f}-{row[key]['max']:.2f})" for key in list(row)[:3]]
        print(f"{name:8s} {cells[0]:>20s} {cells[1]:>22s} {cells[2]:>22s}  {row['loss_difference']:.1g}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
