"""Which sample each process of a DataLoader is at: for the message when one of them is killed."""

from __future__ import annotations

import os

import torch
from torch.utils.data import get_worker_info


class WorkerProgress:
    """A table in memory that the loader's processes share with the one that trains."""

    def __init__(self, workers: int) -> None:
        self._table = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()  # process id, sample

    def at(self, index: int) -> None:
        """Called in a worker when it begins a sample; nothing happens elsewhere."""
        worker = get_worker_info()
        if worker is not None:
            self._table[worker.id] = torch.tensor([os.getpid(), index])

    def of(self, process: int) -> int | None:
        """The sample that a process began last; None if it is no worker, or has begun none."""
        return next((index for pid, index in self._table.tolist() if pid == process), None)
