"""Stage 1 with and without a feature cache, side by side: time of a step, features' bytes and errors.

    OMP_NUM_THREADS=1 python tests/bench/bench_feature_cache.py --steps 6 --repeats 5 --json /tmp/feature_cache.json

The real trainer on scripts/configs/playground_pat.yaml and as many of its records as the steps take; flags that are not
this program's are train/pretrain.py's (`--config`, `--alignment none`, `--bf16 True` ...). Runs alternate: without,
then each --dtypes, `--repeats` times, so that a busy machine slows all of them; a ratio is of two runs of one round.
The first step of a run is not counted. Wall: from step to step, loading included. CPU: seconds of this process, which
with --dataloader_num_workers 0 (the default here) are all there are, and say more on a machine that others use.
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
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402
from transformers import TrainerCallback, set_seed  # noqa: E402

from llava_pat.training.arguments import parse_pretrain  # noqa: E402
from llava_pat.training.feature_cache import with_feature_cache  # noqa: E402
from llava_pat.training.parts import build_parts  # noqa: E402
from llava_pat.training.stages import build_task, build_trainer, build_weights  # noqa: E402

WITHOUT = "without"


class Clock(TrainerCallback):
    """Wall and CPU seconds of every step, loading included."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_step_end(self, args, state, control, **keywords) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def medians(self) -> dict[str, float]:
        """Milliseconds of a step."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        return {
            name: 1e3 * statistics.median(after[k] - before[k] for before, after in pairs)
            for k, name in enumerate(("wall", "cpu"))
        }


def train(argv: list[str], cache: Path | None, dtype: str) -> tuple[dict[str, float], dict[str, Any]]:
    """One short run: milliseconds of a step, and what the cache says of itself."""
    more = [] if cache is None else [f"--feature_cache={cache}", f"--feature_cache_dtype={dtype}"]
    arguments = parse_pretrain(argv + more)
    set_seed(arguments.training.seed)
    parts, report = build_parts(arguments), {}
    if cache is not None:
        parts, report = with_feature_cache(parts, arguments, main=True)
    task = build_task(arguments, parts)
    trainer = build_trainer(arguments, parts, task, build_weights(arguments, task, parts), initial={})
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.medians(), report


def subset(config: dict[str, Any], folder: Path, count: int) -> Path:
    """The first records of the config's data."""
    records = json.loads((ROOT / config["data_path"]).read_text())[:count]
    if len(records) < count:
        raise SystemExit(f"{config['data_path']} has {len(records)} records, {count} are needed: fewer --steps")
    (folder / "train.json").write_text(json.dumps(records))
    return folder / "train.json"


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default="scripts/configs/playground_pat.yaml", help="a stage-1 YAML whose data_path is a JSON list")
    add("--steps", type=int, default=6, help="counted steps of a run")
    add("--repeats", type=int, default=5, help="rounds")
    add("--dtypes", nargs="+", default=["bfloat16", "int8", "float32"])
    add("--json", type=Path, help="write the figures there")
    options, flags = parser.parse_known_args()
    os.chdir(ROOT)
    config = yaml.safe_load(Path(options.config).read_text())
    kinds = [WITHOUT, *options.dtypes]
    steps = {kind: {"wall": [], "cpu": []} for kind in kinds}
    reports: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = (options.steps + 1) * config["global_batch_size"]
        argv = [
            f"--config={options.config}", f"--data_path={subset(config, folder, images)}", "--eval_data_path=",
            "--eval_regions_path=", "--eval_strategy=no", "--save_strategy=no", "--dataloader_num_workers=0",
            f"--output_dir={folder / 'llava'}", "--report_to=none", *flags,
        ]  # fmt: skip
        for _ in range(options.repeats):
            for kind in kinds:
                cache = None if kind == WITHOUT else folder / f"cache-{kind}"
                taken, report = train(argv, cache, kind)
                for clock, milliseconds in taken.items():
                    steps[kind][clock].append(milliseconds)
                if report:
                    reports.setdefault(kind, report)  # of the run that filled it
    result = {
        "command": " ".join(sys.argv), "config": options.config, "images": images, "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(), "device": str(torch.accelerator.current_accelerator() or "cpu"),
        "rows": {},
    }  # fmt: skip
    print(f"\n{'':10s} {'step, ms':>18s} {'CPU, ms':>18s} {'ratio, wall':>20s} {'ratio, CPU':>20s}  bytes/image, error")
    for kind in kinds:
        row: dict[str, Any] = {f"{clock}_ms": spread(values) for clock, values in steps[kind].items()}
        for clock in ("wall", "cpu"):
            pairs = zip(steps[WITHOUT][clock], steps[kind][clock], strict=True)
            row[f"ratio_{clock}"] = spread([theirs / ours for theirs, ours in pairs])
        row |= reports.get(kind, {})
        result["rows"][kind] = row
        cells = [f"{value['median']:.0f} ({value['min']:.0f}-{value['max']:.0f})" for value in list(row.values())[:2]]
        cells += [f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})" for value in list(row.values())[2:4]]
        told = ""
        if kind in reports:
            told = f"{row['feature_cache_bytes'] // images}, mean {row['feature_cache_error_mean']:.2g}, at most " \
                   f"{row['feature_cache_error_max']:.2g}"  # fmt: skip
        print(f"{kind:10s} {cells[0]:>18s} {cells[1]:>18s} {cells[2]:>20s} {cells[3]:>20s}  {told}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
