"""Steps that must not be taken: a loss or gradient that is not finite, or a loss far above the last ones.

All ranks agree on each step before its gradient is used. A bad one is left out on all of them alike (its gradients are
thrown away, the step is counted and the schedules go on) as often as --skip_bad_steps allows; the next one ends the
run, before anything of it can reach a checkpoint. Where --dump_bad_steps allows, it leaves what replays it.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llava_pat.training.arguments import TrainingArguments
from llava_pat.training.failures import RunFailed
from llava_pat.training.ranks import from_all
from llava_pat.training.task import Divisors

# A spike is measured against the median of this many of the last good steps, and not before there are so many.
_HISTORY, _ENOUGH = 64, 10
# A loss scaler that starts at 65536 is at 1 behind 16 halvings: so many more in a row and it finds no scale.
OVERFLOWS_IN_A_ROW = 100


class BadStep(RunFailed, FloatingPointError):
    """The run ends at a bad step; the message names step, samples and the way out."""


@dataclass
class Window:
    """The micro-batches of one optimizer step on this rank, and what has come of them so far."""

    batches: Sequence[Mapping[str, Tensor]]
    divisors: Divisors
    random: list[dict[str, Tensor]] = field(default_factory=list)  # states of torch's generators before each forward
    losses: list[float] = field(default_factory=list)
    troubles: dict[int, str] = field(default_factory=dict)  # place in `batches` -> what is wrong
    mean: float = 0.0  # the step's loss, over all ranks
    troubled: bool = False  # whether any rank has troubles
    verdict: str | None = None  # why all ranks leave the step out

    @property
    def is_complete(self) -> bool:
        return len(self.losses) == len(self.batches)

    def samples(self, places: Sequence[int]) -> list[int]:
        """Places in the data set of the samples of these micro-batches."""
        return [index for place in places for index in self.batches[place]["sample_index"].tolist()]


class BadSteps:
    """Watches the steps of a run. What was skipped and the last losses are part of a checkpoint (`state`), so that a
    resumed run decides as one that was not interrupted."""

    def __init__(self, training: TrainingArguments, model: nn.Module) -> None:
        self.model = model
        self.allowed, self.factor = training.skip_bad_steps, training.max_loss_spike
        self.device, self.ranks = training.device, training.world_size
        self.skipped: list[int] = []  # steps, the first is 1
        self.window: Window | None = None
        self.overflows = 0  # steps in a row that a loss scaler left out
        self._poison: list[Any] = []  # hooks
        self._losses: deque[float] = deque(maxlen=_HISTORY)

    # ---- one step

    def begin(self, batches: Sequence[Mapping[str, Tensor]], divisors: Divisors) -> None:
        self.window = Window(batches, divisors)

    def before_forward(self) -> None:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        self.window.random.append(state)

    def after_forward(self, loss: Tensor, unsound_patches: bool) -> Tensor:
        """The loss to go backward from: of the last micro-batch of a bad step NaN, on all ranks. So every gradient
        becomes NaN, and loss scalers and DeepSpeed leave the step out by themselves."""
        window, value = self.window, float(loss.detach())
        if not math.isfinite(value):
            what = "projected patches hold NaN or infinite values" if unsound_patches else f"the loss is {value}"
            window.troubles[len(window.losses)] = what
        window.losses.append(value)
        if not window.is_complete:
            return loss
        # Over ranks the mean of sums that were divided with the number of ranks in mind (task.Divisors).
        total = torch.tensor(
            [float(bool(window.troubles)), _finite(sum(window.losses)) / self.ranks], device=self.device
        )
        if self.ranks > 1:
            dist.all_reduce(total)
        troubled, mean = total.tolist()
        window.troubled = bool(troubled)
        if troubled:
            window.verdict = "a loss is not finite"
        elif (limit := self._limit()) is not None and mean > limit:
            window.verdict = f"the loss is {mean:.4g}, over {self.factor:g} times the median of the last steps"
        window.mean = mean
        if window.verdict is None:
            return loss
        # A weight that no value of the loss went through (a projector, without images) has a gradient of zeros, not of
        # zeros times NaN. Its own hook reaches it wherever the weight is: ZeRO-3 has it together in the backward pass.
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._poison = [parameter.register_hook(lambda gradient: gradient * float("nan")) for parameter in trained]
        return loss * float("nan")

    def is_bad(self, norm: Tensor | float | None, scaled: bool) -> bool:
        """Whether all ranks leave the step out. scaled: by fp16's loss scaler, whose gradients may overflow: it finds
        its scale by that, and leaves such steps out itself (`optimizer_stepped` counts them)."""
        for hook in self._poison:
            hook.remove()
        self._poison.clear()
        if self.window.verdict is None and norm is not None and not scaled and not math.isfinite(float(norm)):
            self.window.verdict = f"the gradient norm is {float(norm)}"
        if self.window.verdict is None:
            self._losses.append(self.window.mean)
        return self.window.verdict is not None

    def optimizer_stepped(self, skipped: bool) -> bool:
        """Behind every step. skipped: the optimizer left it out. Whether that was so for too many steps in a row."""
        if self.window.verdict is None:
            self.overflows = self.overflows + 1 if skipped else 0
        if self.overflows < OVERFLOWS_IN_A_ROW:
            return False
        self.window.verdict = f"no gradient of {self.overflows} steps in a row was finite, whatever the loss scale"
        return True

    def accounts(self) -> list[tuple[str, list[int]]]:
        """What went wrong and the samples that it went wrong with, of all ranks: of the micro-batches that are to
        blame, or of the whole step where none is."""
        window = self.window
        mine = [(what, window.samples([place])) for place, what in window.troubles.items()]
        whole = window.samples(range(len(window.batches)))
        gathered = from_all((mine, whole))
        blamed = [account for troubles, _ in gathered for account in troubles]
        return blamed or [(window.verdict, [index for _, samples in gathered for index in samples])]

    # ---- the run

    def _limit(self) -> float | None:
        if self.factor is None or len(self._losses) < _ENOUGH:
            return None
        median = statistics.median(self._losses)
        return self.factor * median if median > 0 else None

    def state(self) -> dict[str, Any]:
        return {"skipped": list(self.skipped), "losses": list(self._losses), "overflows": self.overflows}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.overflows = state.get("overflows", 0)  # which checkpoints of earlier versions lack
        self.skipped, self._losses = list(state["skipped"]), deque(state["losses"], maxlen=_HISTORY)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
