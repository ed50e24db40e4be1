"""Asked to stop: a checkpoint after the step that is under way, then the end, with a status that schedulers know.

SIGTERM is what Slurm, Kubernetes and torchrun send before they kill; SIGUSR1 is what `sbatch --signal=USR1@120` sends
as many seconds before the time is over. One rank that is asked is enough.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from llava_pat.training.failures import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopWhenAsked(TrainerCallback):
    """Saves and stops behind the first step in or before which any rank got one of SIGNALS.

    The held-out measures that are due behind that step are left out: who asks gives half a minute, seldom more.
    """

    def __init__(self) -> None:
        self._signal = 0  # this rank's
        self.agreed = 0  # all ranks'

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are taken inside; further ones change nothing, since launchers and schedulers often send several."""
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_asked(self, step: int, steps: int) -> None:
        """Preempted, when training ended because of a signal."""
        if self.agreed:
            raise Preempted(
                f"stopped by {signal.Signals(self.agreed).name} after step {step} of {steps}; checkpoint-{step} is "
                "saved, and the same command goes on from it"
            )

    def on_step_end(self, args, state, control, **keywords) -> None:
        self.agreed = self._signal
        if args.world_size > 1:
            agreed = torch.tensor(self._signal, device=args.device)
            dist.all_reduce(agreed, dist.ReduceOp.MAX)
            self.agreed = int(agreed)
        if self.agreed:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._signal:
            # no print: the signal may have come in the middle of one
            os.write(2, f"{signal.Signals(number).name}: saving a checkpoint after this step, then ending\n".encode())
        self._signal = int(number)
