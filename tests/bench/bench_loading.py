"""Images a second: what the decoder could do, what one process of ours does, and what the run's DataLoader delivers.

    OMP_NUM_THREADS=1 python tests/bench/bench_loading.py --workers 1 2

Made-up JPEGs of 500 x 375, about 80 kB. `decode` opens and decodes alone, `decode, resize` also brings them to the
tower's square: Pillow's work, the least that any loader on Pillow does. The data set adds normalising and tokenising,
the collator the batch. Rounds go through all rows in turn; a row's share is of `decode, resize` in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from tqdm import tqdm  # noqa: E402

from llava_pat.data.collate import Collator  # noqa: E402
from llava_pat.data.dataset import LlavaDataset  # noqa: E402
from llava_pat.performance.loading import made_up_data  # noqa: E402

CLIP_L = {"size": 336, "patch_size": 14, "patches": 576}


def rows_of(dataset: LlavaDataset, options: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """By name: a function that goes through images and says how many."""
    collate = Collator(CLIP_L["patches"], 0, 2048)
    paths = [dataset.image_folder / name for record in dataset.records for name in record.images]

    def decode() -> int:
        for path in paths:
            with Image.open(path) as image:
                image.load()
        return len(paths)

    def resize() -> int:
        for path in paths:
            with Image.open(path) as image:
                image.convert("RGB").resize((448, 336), Image.Resampling.BICUBIC).crop((56, 0, 392, 336))
        return len(paths)

    def one_process() -> int:
        for first in range(0, len(dataset), options.batch_size):
            collate([dataset[index] for index in range(first, min(first + options.batch_size, len(dataset)))])
        return len(dataset)

    def loader(workers: int) -> Callable[[], int]:
        loaded = DataLoader(
            dataset, options.batch_size, num_workers=workers, collate_fn=collate, persistent_workers=True
        )
        return lambda: sum(len(batch["pixel_values"]) for batch in loaded)

    return {"decode": decode, "decode, resize": resize, "data set, collator": one_process} | {
        f"DataLoader, {workers} workers": loader(workers) for workers in options.workers
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[1, 2])
    add("--images", type=int, default=320)
    add("--batch_size", type=int, default=16)
    add("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with made_up_data(CLIP_L["size"], CLIP_L["patch_size"], options.images, 40) as (dataset, jpeg_bytes):
        rows = rows_of(dataset, options)
        for run in rows.values():  # decoder, tokenizer and processes start with the first
            run()
        rates: dict[str, list[float]] = {name: [] for name in rows}
        for _ in tqdm(range(options.rounds), desc="rounds"):
            for name, run in rows.items():
                started = time.perf_counter()
                rates[name].append(run() / (time.perf_counter() - started))
    print(f"{options.images} JPEGs of {jpeg_bytes / 1e3:.0f} kB in batches of {options.batch_size}, images a second\n")
    for name, found in rates.items():
        shares = sorted(ours / limit for ours, limit in zip(found, rates["decode, resize"], strict=True))
        print(f"{name:22}{statistics.median(found):7.0f} ({min(found):.0f} to {max(found):.0f})"
              f"{statistics.median(shares):8.2f} of decode, resize ({shares[0]:.2f} to {shares[-1]:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
