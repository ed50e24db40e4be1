"""Ranks that DeepSpeed joins on a CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def join_ranks(values: Mapping[str, Any]) -> None:
    """Join the launched processes before transformers' TrainingArguments do, where that matters.

    On a CPU transformers checks a ZeRO-3 plan's batch sizes before it has initialised DeepSpeed's communication, and
    takes the world for one process (measured on 5.23).
    """
    if not (values["deepspeed"] and values["use_cpu"] and "WORLD_SIZE" in os.environ):
        return
    import deepspeed

    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="gloo")
