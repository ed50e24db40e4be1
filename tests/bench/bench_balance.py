"""The slowest rank's share of a stage-2 step, in positions: padded, and end to end by either way of dealing.

    python tests/bench/bench_balance.py scripts/configs/playground_finetune.yaml --ranks 8 --batch_size 16

No model runs: lengths are those of the tokenised records, batches those of the run's own sampler. A share counts what
one rank computes in all micro-batches of a step; 1 is what each rank would have if all had the same. --patches sets
another tower's (576: CLIP-L/336). Other flags are train/finetune.py's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from llava_pat.data.collate import expand_images  # noqa: E402
from llava_pat.data.sampling import ModalityLengthSampler  # noqa: E402
from llava_pat.training.finetune_arguments import parse_finetune  # noqa: E402
from llava_pat.training.parts import build_parts  # noqa: E402


def main() -> None:
    add = (parser := argparse.ArgumentParser(description=__doc__)).add_argument
    add("config", type=Path)
    for name, value in (("records", 2560), ("ranks", 8), ("accumulation", 1), ("batch_size", 16), ("patches", 0)):
        add(f"--{name}", type=int, default=value)
    options, flags = parser.parse_known_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="llava-") as out:
        own = ["--pretrain_mm_mlp_adapter=none", "--eval_data_path=", "--eval_regions_path=", f"--output_dir={out}"]
        arguments = parse_finetune([f"--config={options.config}", *own, *flags])
    parts = build_parts(arguments)
    data, patches, longest = (
        parts.train,
        options.patches or parts.model.num_patches,
        arguments.training.model_max_length,
    )
    data.records = data.records[: options.records]
    encoded = [data.encode(record) for record in data.records]
    exact = [len(expand_images(one.input_ids, one.labels, patches, longest, "")[0]) for one in encoded]
    batches = options.ranks * options.accumulation
    size = options.batch_size * batches

    def shares(even: bool, cost: Callable[[list[int]], float]) -> float:
        multimodal = [bool(record.images) for record in data.records]
        sampler = ModalityLengthSampler(
            data.lengths(patches), multimodal, size, arguments.training.seed, batches if even else None
        )
        order, slowest, mean = list(sampler), 0.0, 0.0
        for first in range(0, len(order) - size + 1, size):
            step = order[first : first + size]
            taken = [cost(step[at : at + options.batch_size]) for at in range(0, size, options.batch_size)]
            slowest += max(sum(taken[rank :: options.ranks]) for rank in range(options.ranks))
            mean += sum(exact[index] for index in step) / options.ranks
        return slowest / mean

    def real(batch: list[int]) -> float:
        return sum(exact[index] for index in batch)

    def padded(batch: list[int]) -> float:
        return len(batch) * max(exact[index] for index in batch)

    print(f"{len(exact)} records, {patches} patches, {options.ranks} ranks x {options.accumulation} micro-batches of "
          f"{options.batch_size}")  # fmt: skip
    print(f"padded, neighbours in length share a batch      {shares(False, padded):.3f}")
    print(f"end to end, neighbours in length share a batch  {shares(False, real):.3f}")
    print(f"end to end, dealt evenly (--padding_free True)  {shares(True, real):.3f}")


if __name__ == "__main__":
    main()
