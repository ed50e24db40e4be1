r"""Computes a step again that a run left out or ended at, and says where the first value that is not finite comes up.

    python -m llava_pat.replay OUTPUT_DIR/bad_steps/step-5
    torchrun --nproc_per_node 8 -m llava_pat.replay OUTPUT_DIR/bad_steps/step-5    # where the objective sees all ranks

The dump holds batches, random states and trained weights; the frozen base models are read from where config.yaml says,
the data set is not needed. On the hardware of the run, with its libraries and as many threads, the losses are the run's
to the bit, also those of ZeRO-2 and ZeRO-3 (tested on CPUs). One process takes the first GPU that it may see.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from llava_pat.training.flags import ConfigError
from llava_pat.training.replaying import Replay, build, one_device, replay
from llava_pat.training.step_dump import first_troubled_rank, read_micro_batches, read_step
from llava_pat.types import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the losses are the run's, 1 when they differ, 2 with one line on stderr for no dump."""
    options = _parser().parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        about = read_step(options.dump)
        rank = _rank(options.rank, about["ranks"], options.dump)
        micro_batches = read_micro_batches(options.dump, rank)
        with one_device():
            task, device = build(options.dump, about, options.cpu)
            done = replay(task, micro_batches, about, device)
    except (ConfigError, DataError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    place = (
        f"step {about['step'] + 1} of {about['total_steps']}, stage {about['stage']}, rank {rank} of {about['ranks']}"
    )
    print(f"{place}: {about['verdict']}\n{report(done)}", flush=True)
    same = all(one.is_the_same for one in done.micro_batches)
    if not same:
        print(f"the losses are not the run's: {'; '.join(_reasons(about))}")
    return 0 if same else 1


def _reasons(about: Mapping[str, Any]) -> list[str]:
    """What can make a difference, the likely first."""
    reasons = ["other hardware, libraries or another number of threads"]
    if about["deepspeed"]:
        reasons.insert(0, "DeepSpeed, which computes some things in half precision in its own way")
    if about["ranks"] > 1 and "WORLD_SIZE" not in os.environ:
        everyone = f"torchrun --nproc_per_node {about['ranks']} -m llava_pat.replay ..."
        reasons.append(f"an objective that looks at all ranks, if this one does ({everyone})")
    return reasons


def report(done: Replay) -> str:
    """A line a micro-batch, and what is not finite."""
    lines = []
    for number, one in enumerate(done.micro_batches, 1):
        how = "as in the run" if one.is_the_same else f"{one.micro_batch.loss!r} in the run"
        lines.append(f"micro-batch {number}, samples {list(one.micro_batch.samples)}: loss {one.loss!r}, {how}")
        if one.first is not None:
            lines.append(f"  first value that is not finite: {one.first}")
    if done.gradient_norm is not None:
        lines.append(f"gradient norm of this rank: {done.gradient_norm:.6g}")
        lines.append(f"  {done.first_in_gradient or 'every gradient is finite'}")
    return "\n".join(lines)


def _rank(asked: int | None, ranks: int, dump: Path) -> int:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        rank = first_troubled_rank(dump, ranks) if asked is None else asked
    elif world == ranks and asked is None:
        rank = int(os.environ["RANK"])
    else:
        raise ConfigError(f"{world} processes for a step of {ranks} ranks: start {ranks} without --rank, or one")
    if not 0 <= rank < ranks:
        raise ConfigError(f"--rank {rank}: the step has ranks 0 to {ranks - 1}")
    return rank


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_pat.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dump", type=Path, help="a folder that the message about the step names")
    parser.add_argument(
        "--rank", type=int, help="whose micro-batches (default: the first rank's with a loss that is not finite)"
    )
    parser.add_argument("--cpu", action="store_true", help="on the CPU, also where there is a GPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
