"""Ranks: how they meet on a CPU under DeepSpeed, tell each other, wait, and that each draws for itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from transformers import TrainerCallback

T = TypeVar("T")


def join_ranks(values: Mapping[str, Any]) -> None:
    """Join the launched processes before transformers' TrainingArguments do, where that matters.

    On a CPU transformers checks a ZeRO-3 plan's batch sizes before it has initialised DeepSpeed's communication, and
    takes the world for one process (measured on 5.23).
    """
    if not (values["deepspeed"] and values["use_cpu"] and "WORLD_SIZE" in os.environ):
        return
    import deepspeed

    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="gloo", timeout=timedelta(seconds=values["ddp_timeout"]))


def limit_waiting(seconds: float) -> None:
    """Every group of ranks gives up after --ddp_timeout; those that DeepSpeed makes have torch's defaults otherwise."""
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def from_first(value: T) -> T:
    """The first rank's value, on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    shared = [value]
    dist.broadcast_object_list(shared)
    return shared[0]


def from_all(value: T) -> list[T]:
    """Every rank's value, on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    shared: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shared, value)
    return shared


def wait_for_all() -> None:
    """Until every rank is here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


class DrawApart(TrainerCallback):
    """Gives each rank random numbers of its own when training begins; rank 0 keeps those of a single process.

    transformers seeds all ranks alike, which equal models and one order of data need. Both are made by now. Kept up, it
    would drop the same places of dropout on every rank, and SEA would draw the same windows, whose tied draws always
    keep rank 0's pair of a repeated word. A resumed run loads each rank's state later.
    """

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if args.process_index:
            torch.manual_seed(args.seed + args.process_index)
