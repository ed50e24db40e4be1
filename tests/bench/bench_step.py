"""Training steps side by side: this project, LLaVA's recipe on transformers, TRL, LLaVA itself. JSON and a table.

    OMP_NUM_THREADS=2 python tests/bench/bench_step.py --shape mid --stage 1 --json /tmp/mid-1.json
    ... --contestants ours hf trl llava --llava_python llava_env/bin/python --llava_src llava_src
    ... --contestants ours ours:pat ours:sea           # what an objective costs

All start from the same weights and see the same sequences. Before anything is timed, the first losses must agree to
rounding. Then each steps in turn, in an order that moves on every round; a ratio is of two steps of one round. An idle
machine is needed for seconds; cpu_seconds (all threads of the process) bear some company. A file that --json names
is gone on from when its settings are the same: a killed benchmark loses one round.

A contestant is NAME, with options behind colons and the size of its micro-batches behind @:
ours[:padding_free][:cached][:checkpointing][:eager][:compiled][:liger][:pat|:sea|...], hf[:plain] (plain: no gradient
checkpointing), trl, llava.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from contestants.base import Contestant, Sample, Task, Weights, random_weights  # noqa: E402
from contestants.hf import hf_batches, hugging_face  # noqa: E402
from contestants.ours import Ours  # noqa: E402

from llava_pat.alignment import plan_objectives  # noqa: E402
from llava_pat.performance.flops import step_flops  # noqa: E402
from llava_pat.performance.matrix_rate import matrix_rate  # noqa: E402
from llava_pat.performance.profiling import machine, work_of  # noqa: E402
from llava_pat.performance.shapes import SHAPES, Recipe, build_task  # noqa: E402

# Relative difference of first losses: bf16 has 8 bits of mantissa, and kernels differ in the order of their sums.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-3}

# of ours; other words are objectives
SWITCHES = {"checkpointing", "eager", "padding_free", "cached", "compiled", "liger"}


def enter(text: str, task: Task, weights: Weights, options: argparse.Namespace) -> Contestant:
    """The contestant that `text` names."""
    described, _, micro = text.partition("@")
    name, *settings = described.split(":")
    micro_batch = int(micro) if micro else None
    if name == "ours":
        switches = SWITCHES & set(settings)
        objectives = [setting for setting in settings if setting not in switches]
        recipe = Recipe(
            task.trains, task.shape.dtype, checkpointing="checkpointing" in switches,
            padding_free="padding_free" in switches, attention="eager" if "eager" in switches else "sdpa",
            objectives=plan_objectives("+".join(objectives) or "none", {}, 5.0, None),
        )  # fmt: skip
        return Ours(
            text, task, recipe, weights, micro_batch,
            cached="cached" in switches, compiled="compiled" in switches, fused="liger" in switches,
        )  # fmt: skip
    if name == "hf":
        return hugging_face(text, task, weights, micro_batch, checkpointing="plain" not in settings)
    if name == "trl":
        from contestants.trl import trl

        return trl(text, task, weights, micro_batch)
    if name == "llava":
        from contestants.llava import Llava

        return Llava(text, task, weights, options.llava_python, options.llava_src)
    raise SystemExit(f"no contestant {text!r}: ours, hf, trl, llava")


def check_losses(first: dict[str, Sample], tolerance: float) -> None:
    """Equal work gives equal losses. An objective adds to the loss: such contestants are left out."""
    plain = {name: sample.loss for name, sample in first.items() if not adds_a_loss(name)}
    least, most = min(plain.values()), max(plain.values())
    if most - least > tolerance * most:
        raise SystemExit(f"first losses differ by more than rounding ({tolerance:g}): {plain}")


def adds_a_loss(name: str) -> bool:
    return bool(set(name.partition("@")[0].split(":")[1:]) - SWITCHES - {"plain"})


def curves_apart(rounds: list[dict[str, dict]]) -> float:
    """The largest relative difference of two contestants' losses at the same step: each trains on from its own."""
    apart = 0.0
    for turn in rounds:
        losses = [sample["loss"] for name, sample in turn.items() if not adds_a_loss(name)]
        apart = max(apart, (max(losses) - min(losses)) / max(losses))
    return apart


def summary(rounds: list[dict[str, dict]], flops: float, rate: float) -> dict[str, dict]:
    """By contestant: medians, utilisation, and the ratio to the first one, with its least and most."""
    names = list(rounds[0])
    found = {}
    for name in names:
        entry: dict = {}
        for clock in ("seconds", "cpu_seconds"):
            entry[clock] = statistics.median(turn[name][clock] for turn in rounds)
            ratios = sorted(turn[name][clock] / turn[names[0]][clock] for turn in rounds if turn[names[0]][clock])
            if ratios:
                entry[f"{clock}_ratio"] = [ratios[0], statistics.median(ratios), ratios[-1]]
        entry["utilisation"] = flops / entry["seconds"] / rate
        found[name] = entry
    return found


def table(report: dict) -> str:
    first = report["settings"]["contestants"][0]
    lines = [
        f"{'':24}{'seconds':>9}{'over ' + first:>24}{'cpu seconds':>13}{'over it':>9}{'of rate':>9}{'peak MiB':>10}"
    ]
    for name, entry in report["summary"].items():
        least, median, most = entry["seconds_ratio"]
        cpu = entry["cpu_seconds_ratio"][1]
        peak = report["peak_bytes"].get(name)
        lines.append(
            f"{name:24}{entry['seconds']:9.3f}{f'{median:.2f} ({least:.2f} to {most:.2f})':>24}"
            f"{entry['cpu_seconds']:13.3f}{cpu:9.2f}{entry['utilisation']:9.2f}"
            + (f"{peak / 2**20:10.0f}" if peak is not None else "")
        )
    return "\n".join(lines)


def main() -> None:
    options = parse()
    shape = SHAPES[options.shape]
    trains = "projector" if options.stage == 1 else "lora" if options.lora else "all"
    task = Task(
        shape, trains, torch.device(options.device), options.batch_size or shape.batch_size,
        options.text_tokens or shape.text_tokens, options.uneven, options.seed,
    )  # fmt: skip
    settings = {
        "shape": shape.name, "trains": trains, "sequences": task.sequences, "text_tokens": task.text_tokens,
        "uneven": task.uneven, "seed": task.seed, "contestants": options.contestants, "machine": machine(task.device),
        "transformers": transformers.__version__,
    }  # fmt: skip
    report = recall(options.json, settings)
    # Counted for ours with no micro-batches: the model's work is the same for all.
    model = build_task(shape, Recipe(trains, shape.dtype), "meta").model
    work = work_of(hf_batches(task, None)[0])
    report |= {"work": asdict(work), "flops": step_flops(model, work).total}
    started = time.perf_counter()
    weights = random_weights(task)
    contestants = [enter(text, task, weights, options) for text in options.contestants]
    first = {contestant.name: contestant.step() for contestant in contestants}
    check_losses(first, TOLERANCE[shape.dtype])
    report["first_losses"] = {name: sample.loss for name, sample in first.items()}
    report["matrix_rate"] = max(report["matrix_rate"], matrix_rate(task.device, shape.dtype))
    while len(report["rounds"]) < options.rounds and time.perf_counter() - started < options.most_seconds:
        turn = len(report["rounds"]) % len(contestants)
        samples = {one.name: asdict(one.step()) for one in (*contestants[turn:], *contestants[:turn])}
        report["rounds"].append({one.name: samples[one.name] for one in contestants})
        report["summary"] = summary(report["rounds"], report["flops"], report["matrix_rate"])
        keep(options.json, report)
    if options.memory:
        report["peak_bytes"] = {one.name: one.measure_memory().peak_bytes for one in contestants}
        keep(options.json, report)
    for contestant in contestants:
        contestant.close()
    losses = ", ".join(f"{loss:.5f}" for loss in report["first_losses"].values())
    print(f"{shape.name}, {trains}, {work}, {report['flops'] / 1e12:.3f} TFLOP a step, {len(report['rounds'])} rounds")
    fallen = 1 - report["rounds"][-1][contestants[0].name]["loss"] / report["first_losses"][contestants[0].name]
    print(f"first losses agree: {losses}")
    print(f"losses of later steps differ by {curves_apart(report['rounds']):.1e} at most; they fell by {fallen:.1e}")
    print(f"matrix products {report['matrix_rate'] / 1e12:.3f} TFLOP/s on {settings['machine']}\n\n{table(report)}")


def recall(file: Path | None, settings: dict) -> dict:
    """What the file holds, where its settings are these; else a fresh report."""
    if file is not None and file.exists():
        report = json.loads(file.read_text())
        if report["settings"] == settings:
            return report
        raise SystemExit(f"{file} is of other settings: {report['settings']}\nGive another --json, or delete it")
    return {"settings": settings, "rounds": [], "matrix_rate": 0.0, "peak_bytes": {}}


def keep(file: Path | None, report: dict) -> None:
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="mid")
    add("--stage", type=int, choices=(1, 2), default=1)
    add("--lora", action="store_true", help="stage 2 by LoRA (r 128)")
    add("--contestants", nargs="+", default=["ours", "hf"], help="the first one is what the others are held against")
    add("--rounds", type=int, default=5)
    add("--most_seconds", type=float, default=240, help="no further round begins behind them (default: 240)")
    add("--batch_size", type=int, help="sequences of a step (default: the shape's)")
    add("--text_tokens", type=int, help="supervised tokens behind the image (default: the shape's)")
    add("--uneven", action="store_true", help="captions of all lengths, padded")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="one more step each for its peak")
    add("--llava_python", type=Path, help="python of LLaVA's environment (tests/parity/check_llava.py)")
    add("--llava_src", type=Path, help="LLaVA's repository at c121f04")
    add("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    return options


if __name__ == "__main__":
    main()
