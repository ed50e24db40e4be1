"""A Trainer that takes no bad step (it leaves the step out on all ranks, or ends the run), and names the samples, also
where a process that reads them ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from llava_pat.data.worker_progress import WorkerProgress
from llava_pat.training.bad_steps import BadStep, BadSteps
from llava_pat.training.checkpoints import last_checkpoint
from llava_pat.training.failures import RunFailed, in_one_line, killed_worker, word_of_a_killed_worker
from llava_pat.training.parts import compute_dtype
from llava_pat.training.saving import SavingTrainer
from llava_pat.training.step_dump import FOLDER, write_dump
from llava_pat.training.step_precision import precision_of
from llava_pat.training.task import Divisors
from llava_pat.types import DataError

_STATE = "llava_pat_bad_steps"  # in trainer_state.json
_SHOWN = 64  # ids in a message; the dump has all


class GuardedTrainer(SavingTrainer):
    """stage: 1 or 2, for the dump of a bad step."""

    def __init__(self, *args: Any, stage: int, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.stage = stage
        self.bad_steps = BadSteps(self.args, self.model)
        self.add_callback(_Schedule(self))
        self._schedule_waits = False  # for a step that was left out
        self._dumps = 0
        self._begun = 0  # steps that earlier starts took
        self._before_step: tuple[Tensor, dict[str, Tensor]] | None = None  # what the next log line has so far

    @abstractmethod
    def sample_id(self, index: int) -> str:
        """The id of a sample, by its place in the data set."""

    def train(self, *args: Any, **keywords: Any) -> TrainOutput:
        """As transformers'; what the loader's processes end with becomes one message, with the sample."""
        try:
            trained = super().train(*args, **keywords)
            mean = self._mean_of_taken(trained.training_loss)
            return trained._replace(training_loss=mean, metrics=trained.metrics | {"train_loss": mean})
        except DataError as error:
            raise DataError(
                f"{in_one_line(error)}. {self._goes_on('Once that is mended, the same command')}", error.kind
            ) from error
        except (RuntimeError, ConnectionError, EOFError) as error:
            torn = not isinstance(error, RuntimeError) and self.args.dataloader_num_workers > 0
            ended = self._worker_ended((word_of_a_killed_worker() if torn else None) or error)
            if ended is None:
                raise
            raise ended from error

    def _worker_ended(self, error: Exception) -> RunFailed | None:
        """One message for a process of the loader that is gone; None for another error."""
        killed = killed_worker(error)
        if killed is None:
            return None
        index = self.train_dataset.progress.of(killed)
        place = "before its first sample" if index is None else f"at sample {self.sample_id(index)!r}, or behind it"
        return RunFailed(
            f"a process that reads images (pid {killed}) ended {place}, in step {self.state.global_step + 1} of "
            f"{self.state.max_steps}: {str(error).strip()} If memory ran out, take fewer --dataloader_num_workers. "
            + self._goes_on()
        )

    def get_train_dataloader(self) -> DataLoader:
        if self.args.dataloader_num_workers:
            self.train_dataset.progress = WorkerProgress(self.args.dataloader_num_workers)
        return super().get_train_dataloader()

    def _goes_on(self, command: str = "The same command") -> str:
        kept = last_checkpoint(self.args.output_dir, closely=False)
        return f"{command} goes on from {kept}" if kept else "No checkpoint was written yet"

    def begin_step(self, batches: Sequence[Mapping[str, Tensor]], divisors: Divisors) -> None:
        """The micro-batches of a step are there, on this rank."""
        self.bad_steps.begin(batches, divisors)
        if self.is_in_train:
            self._before_step = self._tr_loss.clone(), dict(self.log_window())

    def without_bad_steps(self, logs: dict[str, float]) -> dict[str, float]:
        """A log line of the steps that were taken: transformers divides by all of them. Of those since the last line,
        without a loss where none was taken; or of all of this start (`train_loss`)."""
        if not self.bad_steps.skipped:
            return logs
        if "train_loss" in logs:
            return logs | {"train_loss": self._mean_of_taken(logs["train_loss"])}
        if "learning_rate" not in logs:
            return logs  # of the held-out data
        lines = [line["step"] for line in self.state.log_history if "learning_rate" in line]
        since = lines[-1] if lines else 0
        left_out = sum(step > since for step in self.bad_steps.skipped)
        if not left_out:
            return logs
        steps = self.state.global_step - since
        if left_out == steps:
            return {"learning_rate": logs["learning_rate"], "skipped_steps": left_out}
        if self.bad_steps.skipped[-1] == self.state.global_step:
            logs = {name: value for name, value in logs.items() if name != "grad_norm"}  # of a step that was not taken
        return logs | {"loss": logs["loss"] * steps / (steps - left_out), "skipped_steps": left_out}

    def _mean_of_taken(self, train_loss: float) -> float:
        """Of the loss that transformers divided by all steps of this start; 0 where none was taken, as there."""
        steps = self.state.global_step - self._begun
        taken = steps - sum(step > self._begun for step in self.bad_steps.skipped)
        return train_loss * steps / taken if taken else 0.0

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.state.stateful_callbacks[_STATE] = self.bad_steps.state()
        super()._save_checkpoint(model, trial)

    def _init_training_state(self, *args: Any, **keywords: Any) -> tuple[int, int]:
        begun = super()._init_training_state(*args, **keywords)
        self._begun = self.state.global_step
        if _STATE in self.state.stateful_callbacks:  # of a run that goes on
            self.bad_steps.restore(self.state.stateful_callbacks[_STATE])
        return begun

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.bad_steps.is_bad(norm, scaled=self.args.fp16):
            self._leave_out(model)
        return norm

    def _leave_out(self, model: torch.nn.Module) -> None:
        """On all ranks alike: the run ends, or nothing of the step stays."""
        step, guard = self.state.global_step + 1, self.bad_steps
        guard.skipped.append(step)
        if len(guard.skipped) > guard.allowed:
            self._end(
                step,
                "Look at these samples, lower --learning_rate, or train in fp32 (--bf16 False). --skip_bad_steps, now "
                f"{guard.allowed}, says how many such steps a run leaves out",
            )
        found, dumped = self._found(step), self._dump(step, ends=False)
        if self.args.process_index == 0:
            said = f"{found}: left out, number {len(guard.skipped)} of {guard.allowed} (--skip_bad_steps). {dumped}"
            print(said.rstrip(), flush=True)
        self._tr_loss, sums = self._before_step
        self.restore_log_window(sums)
        # DeepSpeed and fp16's loss scaler leave the step out themselves, which needs the gradients, and the schedule's
        # step with it; an optimizer of torch's kind passes over parameters that have no gradient.
        if self.is_deepspeed_enabled or self.args.fp16:
            self._schedule_waits = True
        else:
            model.zero_grad(set_to_none=True)

    def refuse_endless_overflow(self) -> None:
        """Behind every step: a loss scaler that finds no scale would leave out all that are left, without a word."""
        if self.bad_steps.optimizer_stepped(self.accelerator.optimizer_step_was_skipped):
            self._end(
                self.state.global_step,
                "None of these steps was taken. fp16 is too narrow here: train in bf16 (--bf16 True), or in fp32",
            )

    def _found(self, step: int) -> str:
        place = f"at step {step} of {self.state.max_steps}"
        accounts = self.bad_steps.accounts()
        return "; ".join(f"{what} {place}; samples {self._shown(samples)}" for what, samples in accounts)

    def _end(self, step: int, way_out: str) -> NoReturn:
        found, dumped = self._found(step), self._dump(step, ends=True)
        kept = last_checkpoint(self.args.output_dir, closely=False)
        raise BadStep(
            f"{found}. "
            + (f"The last good checkpoint is {kept}. " if kept else "No checkpoint was written yet. ")
            + dumped
            + way_out
        )

    def advance_schedule(self) -> None:
        """Behind a step that was left out, where the optimizer kept the schedule from its own."""
        if self._schedule_waits:
            self._schedule_waits = False
            of_deepspeed = self.model_wrapped.lr_scheduler if self.is_deepspeed_enabled else None
            (self.lr_scheduler if of_deepspeed is None else of_deepspeed).step()

    def _dump(self, step: int, ends: bool) -> str:
        """ends: the run ends here; such a step is dumped whatever was dumped before, unless dumps are off."""
        if self._dumps >= self.args.dump_bad_steps and not (ends and self.args.dump_bad_steps > 0):
            return ""
        self._dumps += 1
        window = self.bad_steps.window
        half = (self.args.bf16 or self.args.fp16) and not self.is_deepspeed_enabled
        about = {
            "stage": self.stage,
            "step": step - 1,
            "total_steps": self.state.max_steps,
            "ranks": self.args.world_size,
            "autocast": str(compute_dtype(self.args)).removeprefix("torch.") if half else None,
            "verdict": window.verdict,
            "losses_finite": not window.troubled,
            "deepspeed": self.is_deepspeed_enabled,
            **precision_of(self.model),
        }
        folder = Path(self.args.output_dir) / FOLDER / f"step-{step}"
        problem = write_dump(folder, window, self.sample_id, about, self.model, self.args.process_index)
        if problem is not None:
            return f"It could not be dumped: {problem}. "
        return f"It can be computed again: python -m llava_pat.replay {folder}. "

    def _shown(self, samples: Sequence[int]) -> str:
        more = f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
        return f"{[self.sample_id(index) for index in samples[:_SHOWN]]}{more}"


class _Schedule(TrainerCallback):
    """Where transformers has read the learning rate of the step, and has not saved yet."""

    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args, state, control, **keywords) -> None:
        self.trainer.refuse_endless_overflow()
        self.trainer.advance_schedule()
