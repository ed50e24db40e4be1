"""Memory and time of the measuring run at the size of LLaVA-1.5 7B, without the models: made-up features and words.

    OMP_NUM_THREADS=2 python tests/bench/bench_alignment.py --images 64 --rows 2

Prints the peak resident memory after every batch: it must not grow with the images. Of it, the words' table takes
524 MB (32,000 x 4096 in fp32) and each row's pooled entropy 134 MB. `--no_result` leaves out the eigenvalues of the
[4096, 4096] sums at the end (a minute or two a row on one core).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llava_pat.analysis.vocabulary import Vocabulary  # noqa: E402
from llava_pat.data.words import Words  # noqa: E402
from llava_pat.evaluation.alignment.measure import measure_rows  # noqa: E402
from llava_pat.evaluation.alignment.readings import Readings  # noqa: E402
from llava_pat.evaluation.alignment.views import Sampling  # noqa: E402

COLOURS = ("red", "green", "blue")


def make_subject(vision_width: int, hidden_size: int, patches: int, pieces: int) -> SimpleNamespace:
    """In a checkpoint's place: "images" are seeds, features are drawn from them, and words from a fixed table."""
    table = torch.randn(pieces, hidden_size, generator=torch.Generator().manual_seed(1))

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        drawn = [
            torch.randn(patches, vision_width, generator=torch.Generator().manual_seed(int(seed)))
            for seed in pixels.flatten(1)[:, 0]
        ]
        return torch.stack(drawn)

    model = SimpleNamespace(
        vision_width=vision_width, hidden_size=hidden_size, encode_images=encode, embed_words=lambda ids: table[ids],
        llm=SimpleNamespace(config=SimpleNamespace(num_hidden_layers=32)),
    )  # fmt: skip
    return SimpleNamespace(model=model, device=torch.device("cpu"), dtype=torch.float32)


def make_readings(subject: SimpleNamespace, pieces: int) -> Readings:
    """Three colours as vocabulary and labels; every id is a word."""
    ids, mask = torch.arange(3).unsqueeze(1), torch.ones(3, 1, dtype=torch.bool)
    targets = {(i,): torch.arange(3) == i for i in range(3)}
    words = Words(Vocabulary(COLOURS, {"colour": (0, 1, 2)}), ids, mask, targets)
    vectors = words.vectors(subject.model.embed_words)
    every = torch.arange(pieces)
    texts = tuple(map(str, range(pieces)))
    return Readings(words, words, vectors, vectors, every, texts, subject.model.embed_words(every), {}, frozenset())


def make_batches(images: int, batch_size: int, patches: int) -> Iterator[dict[str, torch.Tensor]]:
    """What the collator gives: two regions an image, of a quarter of its patches each."""
    for first in range(0, images, batch_size):
        places = torch.arange(first, min(first + batch_size, images))
        count = len(places)
        coverage = torch.zeros(2 * count, patches)
        coverage[::2, : patches // 4] = coverage[1::2, patches // 4 : patches // 2] = 1.0
        yield {
            "sample_index": places,
            "pixel_values": places.float().view(-1, 1, 1, 1),
            "labels": torch.tensor([[-100, 0, 1, 2]]).repeat(count, 1),
            "region_coverage": coverage,
            "region_image": torch.arange(count).repeat_interleave(2),
            "region_label_ids": torch.tensor([[0], [1]]).repeat(count, 1),
            "region_label_mask": torch.ones(2 * count, 1, dtype=torch.bool),
        }


def main() -> None:
    add = (parser := argparse.ArgumentParser(description=__doc__)).add_argument
    for name, value in (("images", 64), ("rows", 1), ("batch_size", 8), ("patches", 576), ("vision_width", 1024),
                        ("hidden_size", 4096), ("pieces", 32_000), ("decomposed", 1), ("sampled", 4)):  # fmt: skip
        add(f"--{name}", type=int, default=value)
    add("--no_result", action="store_true")
    o = parser.parse_args()
    subject = make_subject(o.vision_width, o.hidden_size, o.patches, o.pieces)
    weight = torch.randn(o.vision_width, o.hidden_size) / o.vision_width**0.5
    started = time.perf_counter()

    def watched() -> Iterator[dict[str, torch.Tensor]]:
        for batch in make_batches(o.images, o.batch_size, o.patches):
            yield batch
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            done = int(batch["sample_index"][-1]) + 1
            print(f"{done:5d} images  {time.perf_counter() - started:7.1f} s  peak {peak:.2f} GiB", flush=True)
        if o.no_result:
            sys.exit()

    rows = {f"row{number}": lambda features: features @ weight for number in range(o.rows)}
    sampling = Sampling(0, 0.25, o.sampled, o.decomposed)
    measure_rows(subject, make_readings(subject, o.pieces), rows, watched(), sampling, language_images=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"with the results  {time.perf_counter() - started:7.1f} s  peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
