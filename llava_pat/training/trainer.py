"""HF Trainer for one module that owns its loss: exact normalisation, the project's log, small checkpoints.

What transformers does is left to it (loop, optimizer, schedule, DDP, DeepSpeed, resume). Overridden here:

- the divisors of the two sums, over the accumulation window and all ranks (see task.Divisors);
- checkpoints hold what trains and nothing frozen: transformers would write the whole language model each time;
- evaluation is the probe's, on every held-out sample exactly once whatever the number of ranks;
- a loss or gradient that is not finite stops the run before it can reach a checkpoint, and names the samples.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import Trainer

from llava_pat.data.collate import patch_regions
from llava_pat.models.checkpoint import load_objective, load_projector, save_objective, save_projector
from llava_pat.training.checkpoints import TRAINER_STATE, gathered, last_checkpoint
from llava_pat.training.flags import ConfigError
from llava_pat.training.measure import Probe
from llava_pat.training.task import AlignedPretraining, Divisors
from llava_pat.types import IGNORE_INDEX


class PretrainTrainer(Trainer):
    """Trains an AlignedPretraining module.

    probe: measures the held-out data set (`eval_dataset`) in `evaluate`.
    write_config: writes the stage-1 config.json into a folder; called for every checkpoint.
    """

    model: AlignedPretraining

    def __init__(self, *args: Any, probe: Probe, write_config: Callable[[Path], None], **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.probe = probe
        self.write_config = write_config
        # `compute_loss` divides by the whole window itself: transformers must not divide again. (The two attributes
        # say so to different transformers versions.)
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._sums: dict[str, Tensor] = {}
        self._window: list[Tensor] = []  # data set places of the samples since the last optimizer step
        self._log_clock = time.perf_counter()
        self._samples_since_log = 0

    # ---- the loss

    def _get_num_items_in_batch(
        self, batch_samples: list[Mapping[str, Tensor]], device: torch.device
    ) -> Divisors | None:
        """The divisors of the accumulation window that `batch_samples` make up."""
        if not batch_samples:
            return None
        self._window = [batch["sample_index"] for batch in batch_samples]
        caption = sum((batch["labels"][:, 1:] != IGNORE_INDEX).sum() for batch in batch_samples)
        counts = [self.model.objective.count(patch_regions(batch)) for batch in batch_samples]
        known = all(count is not None for count in counts)
        alignment = sum(count.cpu() for count in counts) if known else torch.zeros(())
        total = torch.tensor([float(caption), float(alignment)], device=device)
        self._all_reduce(total)
        total = total / self.args.world_size
        return Divisors(total[0], total[1] if known else None, len(batch_samples))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Divisors | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        step, total = self.state.global_step, self.state.max_steps
        try:
            outputs = model(inputs, step=step, total_steps=total, divisors=num_items_in_batch)
        except FloatingPointError as error:
            raise self._not_finite(str(error), inputs["sample_index"]) from error
        self._refuse_non_finite(outputs["loss"], inputs["sample_index"], "loss")
        for name, value in outputs.items():
            if name != "loss":
                self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._samples_since_log += len(inputs["sample_index"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """To the device, in the dtypes of the collator: under DeepSpeed transformers would round coverage to bf16."""
        return {name: value.to(self.args.device, non_blocking=True) for name, value in inputs.items()}

    def _refuse_non_finite(self, value: Tensor | float, samples: Tensor, what: str) -> None:
        value = float(value.detach() if isinstance(value, Tensor) else value)
        if not math.isfinite(value):
            raise self._not_finite(f"the {what} is {value}", samples)

    def _not_finite(self, what: str, samples: Tensor) -> FloatingPointError:
        ids = [self.train_dataset.records[index].id for index in samples.tolist()]
        kept = last_checkpoint(self.args.output_dir)
        return FloatingPointError(
            f"{what} at step {self.state.global_step + 1} of {self.state.max_steps}; samples {ids}. "
            + (f"The last good checkpoint is {kept}." if kept else "No checkpoint was written yet.")
            + " Look at these samples, lower --learning_rate, or train in fp32 (--bf16 False)."
        )

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's loss scaler skips a step whose gradients overflow, and lowers its scale: that is its normal work.
        if norm is not None and not self.args.fp16:
            self._refuse_non_finite(norm, torch.cat(self._window), "gradient norm")
        return norm

    # ---- the log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "grad_norm" in logs:  # a training step's line
            logs |= self._drain_sums()
        super().log(logs, start_time)

    def _drain_sums(self) -> dict[str, float]:
        """Means since the last log line over all ranks, throughput, and the weight that the last step used."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name].float() for name in names])
        self._all_reduce(values)
        sums = dict(zip(names, values.tolist(), strict=True))
        self._sums.clear()
        seconds = time.perf_counter() - self._log_clock
        samples = self._samples_since_log * self.args.world_size
        self._log_clock, self._samples_since_log = time.perf_counter(), 0
        items = max(sums["alignment_count"], 1.0)
        return {
            "caption_loss": sums["caption_sum"] / max(sums["caption_count"], 1.0),
            "alignment_loss": sums["alignment_sum"] / items,
            "alignment_weight": self.model.weight(self.state.global_step - 1, self.state.max_steps),
            "alignment_items": sums["alignment_count"],
            **{name: value / items for name, value in sums.items() if name.startswith("alignment/")},
            "samples_per_second": samples / seconds,
        }

    # ---- held-out measures

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The probe's measures of the held-out data; logged as <prefix>_<name>."""
        measured = self.measure()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self._log_clock = time.perf_counter()  # throughput is of training
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self) -> dict[str, float]:
        """The probe's measures, each held-out sample once; the same on every rank. {} without held-out data."""
        if self.eval_dataset is None:
            return {}
        mine = Subset(self.eval_dataset, range(self.args.process_index, len(self.eval_dataset), self.args.world_size))
        # No shuffling, and a generator of its own, since every iterator draws a seed: measuring must not move the
        # random state of training.
        loader = DataLoader(
            mine, self.args.per_device_eval_batch_size, collate_fn=self.data_collator, generator=torch.Generator()
        )
        model = self.model.model
        if not self.is_in_train:
            model.to(self.args.device)
        batches = (self._prepare_inputs(batch) for batch in loader)
        with self.compute_loss_context_manager():
            return self.probe.measure(model, batches, self._all_reduce)

    def _all_reduce(self, tensor: Tensor) -> None:
        """Sum over ranks, in place."""
        if self.args.world_size > 1:
            there = tensor.to(self.args.device)
            dist.all_reduce(there)
            tensor.copy_(there)

    # ---- checkpoints: what trains, and nothing frozen

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Stage-1 files into `output_dir`: projector, objective, config.json. Called on every rank."""
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        with gathered(self.model):
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                save_projector(self.model.model.projector, folder)
                save_objective(self.model.objective, folder)
                self.write_config(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_projector(resume_from_checkpoint, self.model.model.projector)
        load_objective(resume_from_checkpoint, self.model.objective)

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None):
        if resume_from_checkpoint is not None:
            self._refuse_another_length(max_steps, Path(resume_from_checkpoint))
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        import deepspeed

        # DeepSpeed's own default without the key was "no clipping" once and is 1.0 now; here the flag decides, as it
        # does without DeepSpeed.
        plan = self.accelerator.state.deepspeed_plugin.hf_ds_config.config
        plan.setdefault("gradient_clipping", self.args.max_grad_norm)
        # transformers leaves frozen weights out of a DeepSpeed checkpoint for PEFT models only.
        engine = deepspeed.DeepSpeedEngine
        with contextlib.ExitStack() as restore:
            load = engine.load_checkpoint
            restore.callback(setattr, engine, "load_checkpoint", load)

            @functools.wraps(load)
            def load_what_trains(self, *args, **keywords):
                return load(self, *args, **{**keywords, "load_module_strict": False})

            engine.load_checkpoint = load_what_trains
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        wrapped = self.model_wrapped
        wrapped.save_checkpoint = functools.partial(wrapped.save_checkpoint, exclude_frozen_parameters=True)
        return prepared

    def _refuse_another_length(self, max_steps: int, checkpoint: Path) -> None:
        """With another number of processes, or other data of the same name, transformers would go on without a word."""
        theirs = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))["max_steps"]
        if theirs != max_steps:
            raise ConfigError(
                f"{checkpoint} is of a run of {theirs} steps, this one has {max_steps}: the number of processes (now "
                f"{self.args.world_size}) or the data differ. Start it as before, with --global_batch_size on any "
                "number of processes, or choose another --output_dir"
            )
