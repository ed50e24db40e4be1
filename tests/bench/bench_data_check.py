"""Time of `python -m llava_pat.data.check`, as a whole process: seconds, CPU seconds, images a second.

    python tests/bench/bench_data_check.py --image_folder playground/data/images --data_path \\
        playground/data/pretrain_train.json --regions_path playground/data/regions_train.jsonl \\
        --model_name_or_path playground/models/llama --vision_tower playground/models/clip

Flags are the command's. CPU seconds (of all its processes) say more than seconds on a machine that others use.
`--records 100000` times the pass without images instead: that many made-up text-only records of about 60 words, which
is what a run's start pays for records, tokens and the manifest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def write_records(file: Path, count: int) -> None:
    """Made-up conversations, one a line."""
    answer = " ".join(["a red circle left of a large blue square"] * 6)
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            turns = [{"from": "human", "value": f"What is on picture {number}?"}, {"from": "gpt", "value": answer}]
            out.write(json.dumps({"id": str(number), "conversations": turns}) + "\n")


def main() -> None:
    flags = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        if "--records" in flags:
            place = flags.index("--records")
            count = int(flags[place + 1])
            flags[place : place + 2] = ["--data_path", f"{scratch}/r.jsonl", "--image_folder", scratch]
            flags += ["--version", "v1"]
            write_records(Path(scratch) / "r.jsonl", count)
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "llava_pat.data.check", *flags, "--report", str(report)]
        started, before = time.perf_counter(), os.times()
        status = subprocess.run(command, cwd=ROOT).returncode
        seconds, after = time.perf_counter() - started, os.times()
        data = json.loads(report.read_text())["data"]
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    load = os.getloadavg()[0]
    print(f"status {status}; {data['records']} records, {data['named_images']} images; load {load:.1f}")
    print(f"whole process: {seconds:.1f} s, {cpu:.1f} CPU seconds")


if __name__ == "__main__":
    main()
