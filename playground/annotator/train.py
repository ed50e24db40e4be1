"""Trains the playground's annotator from nothing, on scenes that are drawn for it.

    python -m playground.annotator.train                  # playground/data/annotator; minutes on two cores

The scenes are of another world than the playground's data (--seed): it has seen none that it will annotate, but for
`train` the same handwritten digits, in other places and colours. The digits of `val` and `test` it has never seen.
A killed training goes on where it was; the same settings give the same weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from playground import world
from playground.annotator.net import loss_of, new_net
from playground.annotator.pixels import to_input
from playground.annotator.scheme import pixel_targets
from playground.fit import fit

OUT = Path(__file__).parents[1] / "data" / "annotator"
LEARNING_RATE, WARMUP, SAVE_EVERY = 3e-3, 50, 50


def draw_batch(seed: int, indices: range) -> tuple[Tensor, Tensor]:
    """A random square of each scene: pixels float32 [I, 3, 80, 80], kinds and colours int64 [I, 2, 80, 80]."""
    pixels, targets = [], []
    for index in indices:
        scene = world.scene(seed, "train", index)
        rng = np.random.default_rng([seed, world.SPLITS["train"], index, 8])
        top, left = (int(rng.integers(side - world.SIDE + 1)) for side in scene.instances.shape)
        window = slice(top, top + world.SIDE), slice(left, left + world.SIDE)
        pixels.append(scene.pixels[window])
        targets.append(pixel_targets(scene)[(slice(None), *window)])
    return to_input(np.stack(pixels)), torch.from_numpy(np.stack(targets)).long()


def train(out: Path, seed: int, steps: int, batch_size: int) -> None:
    """Writes the network's folder: config.json, model.safetensors, training.json."""
    out.mkdir(parents=True, exist_ok=True)
    state = out / f"training-seed{seed}-steps{steps}-batch{batch_size}.pt"
    torch.manual_seed(seed)
    net = new_net().train()

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, targets = draw_batch(seed, range(step * batch_size, (step + 1) * batch_size))
        return loss_of(net(pixel_values=pixels).logits, targets)

    started, used = time.perf_counter(), time.process_time()
    warmup = min(WARMUP, steps)
    fit(net, loss_at, steps=steps, learning_rate=LEARNING_RATE, state=state, warmup=warmup, save_every=SAVE_EVERY)
    net.save_pretrained(out)
    # of this start: a training that was killed has used more
    spent = {"seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(time.process_time() - used, 1)}
    settings = {"seed": seed, "split": "train", "steps": steps, "batch_size": batch_size, "scenes": steps * batch_size}
    (out / "training.json").write_text(json.dumps(settings | spent | {"threads": torch.get_num_threads()}, indent=2))
    state.unlink()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="a folder (default: playground/data/annotator)")
    parser.add_argument("--seed", type=int, default=1, help="of the world and the weights (the playground's data: 0)")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=32, help="scenes a step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    train(arguments.out, arguments.seed, arguments.steps, arguments.batch_size)
    print(f"{arguments.out}: {(arguments.out / 'training.json').read_text()}")


if __name__ == "__main__":
    main()
