"""Runs of the stages in forked processes, to be killed: what is imported already need not be imported again."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from llava_pat.training.launch import run
from llava_pat.training.stages import finetune, pretrain

STAGES = {1: pretrain, 2: finetune}


@dataclass(frozen=True)
class Started:
    """The processes of one start of a run, one a rank; what each prints goes to a file of its own."""

    processes: Sequence[BaseProcess]
    logs: Sequence[Path]

    def wait(self, limit: float) -> list[int | None]:
        """Exit statuses (a signal is negative), None for one that is still there after `limit` seconds in all."""
        end = time.monotonic() + limit
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def send(self, number: int, rank: int | None = None) -> None:
        """A signal to one rank, or to all that are still there."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.is_alive():
                os.kill(process.pid, number)

    def said(self, rank: int = 0) -> str:
        return self.logs[rank].read_text(errors="replace") if self.logs[rank].exists() else ""


def start(
    stage: int,
    argv: Sequence[str] | Callable[[int], Sequence[str]],
    logs: Path,
    ranks: int = 1,
    prepare: Callable[[int], None] | None = None,
) -> Started:
    """Start a stage as `ranks` processes.

    argv: of all of them, or by rank. prepare: called in each with its rank before the stage; may patch things.
    """
    port = _free_port()
    files = [logs.with_name(f"{logs.name}.{rank}") for rank in range(ranks)]
    fork = multiprocessing.get_context("fork")
    processes = []
    for rank, file in enumerate(files):
        file.unlink(missing_ok=True)
        words = list(argv(rank) if callable(argv) else argv)
        processes.append(fork.Process(target=_child, args=(stage, words, file, rank, ranks, port, prepare)))
        processes[-1].start()
    return Started(processes, files)


def _child(
    stage: int, argv: list[str], log: Path, rank: int, ranks: int, port: int, prepare: Callable[[int], None] | None
) -> None:
    stream = log.open("w", buffering=1)
    for handle in (sys.__stdout__, sys.__stderr__):
        os.dup2(stream.fileno(), handle.fileno())
    sys.stdout = sys.stderr = stream
    logging.basicConfig(stream=stream, level=logging.WARNING, format="%(message)s", force=True)
    torch.set_num_threads(1)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # DeepSpeed's ninja
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, if it has trained
    if prepare is not None:
        prepare(rank)
    run(lambda: STAGES[stage](argv))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
