"""How an entry point ends: errors that are the user's to mend are one message, not a traceback (failures.py)."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch
import torch.distributed as dist

from llava_pat.training.failures import Preempted, RunFailed
from llava_pat.training.flags import ConfigError
from llava_pat.training.phases import current, lost_the_others, who
from llava_pat.types import DataError


def run(stage: Callable[[], object]) -> None:
    """Run a stage; a ConfigError, DataError or RunFailed, a stop that was asked for and other ranks that are gone are
    printed and end the process with their status (other ranks are torn down by the launcher). Anything else keeps its
    traceback."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    try:
        stage()
    except (ConfigError, DataError) as error:
        _end(f"error: {error}", 2)
    except RunFailed as error:
        _end(f"error: {error}", 1)
    except Preempted as error:
        _end(str(error) if os.environ.get("RANK", "0") == "0" else "", error.status)
    except RuntimeError as error:
        if not lost_the_others(error):
            raise
        _end(
            f"error: {who()} got no answer from another rank in this phase: {current()} ({str(error).splitlines()[0]})."
            " A rank that ended says why further up; one that hangs is silent. The same command goes on from the last "
            "checkpoint",
            1,
        )
    # After a clean end only: with other ranks in the middle of a collective, this would wait for them.
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # the trainer is a cycle; its DDP must go before the group, or the process may abort as it exits
        dist.destroy_process_group()


def _end(message: str, status: int) -> NoReturn:
    if message:
        print(message, file=sys.stderr, flush=True)
    sys.exit(status)
