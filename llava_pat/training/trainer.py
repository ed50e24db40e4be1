"""HF Trainer for one module that owns its loss: exact normalisation, the project's log, small checkpoints.

What transformers does is left to it (loop, optimizer, schedule, DDP, DeepSpeed, resume). Overridden here:

- the divisors of the two sums, over the accumulation window and all ranks (see task.Divisors);
- checkpoints hold what the stage says (see weights.py): in stage 1 transformers would write the whole language model;
- learning rates of their own for projector and tower, and batches grouped as LLaVA groups them;
- evaluation is the probe's, on every held-out sample exactly once whatever the number of ranks;
- a step whose loss or gradient is not finite never reaches a checkpoint (guarding.py), and checkpoints are whole or not
  there (saving.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from llava_pat.data.collate import images_without_words, patch_regions, patch_words
from llava_pat.models.padding_free import check_boundaries
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.training.checkpoints import TRAINER_STATE
from llava_pat.training.flags import ConfigError
from llava_pat.training.guarding import GuardedTrainer
from llava_pat.training.lost_images import LostImages
from llava_pat.training.measure import Probe
from llava_pat.training.parts import compute_dtype
from llava_pat.training.patch_words import OnlineWords
from llava_pat.training.phases import phase
from llava_pat.training.ranks import limit_waiting
from llava_pat.training.task import AlignedTraining, Divisors
from llava_pat.training.weights import Weights
from llava_pat.types import IGNORE_INDEX

_LOST = "llava_pat_lost_images"  # in trainer_state.json


def alignment_log(sums: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """What the log says of the alignment, from the sums that the task returned (see task.AlignedTraining.forward).

    alignment_loss, alignment_weight, alignment_items, and alignment/<name> for metrics (means over items) and counters
    (as they are). Of several objectives these are alignment/<objective>_loss, _weight, _items, _<name>; alignment_loss
    is then their weighted sum, with alignment_weight 1: the loss is caption + alignment_weight * alignment_loss.
    """
    log: dict[str, float] = {}
    whole = items_of_all = 0.0
    for part, weight in weights.items():
        mark, prefix = (f"@{part}", f"{part}_") if part else ("", "")
        items = sums[f"alignment_count{mark}"]
        loss = sums[f"alignment_sum{mark}"] / max(items, 1.0)
        whole, items_of_all = whole + weight * loss, items_of_all + items
        if part:
            values = {"loss": loss, "weight": weight, "items": items}
            log |= {f"alignment/{prefix}{name}": value for name, value in values.items()}
        else:
            log |= {"alignment_loss": loss, "alignment_weight": weight}
        for name, value in sums.items():
            kind, _, rest = name.partition("/")
            metric, _, owner = rest.partition("@")
            if owner == part and kind in ("alignment", "counter"):
                log[f"alignment/{prefix}{metric}"] = value / max(items, 1.0) if kind == "alignment" else value
    if "" not in weights:
        log |= {"alignment_loss": whole, "alignment_weight": 1.0}
    return {**log, "alignment_items": items_of_all}


class AlignedTrainer(GuardedTrainer):
    """Trains an AlignedTraining module.

    probe: measures the held-out data set (`eval_dataset`) in `evaluate`.
    weights: writes the model into a checkpoint's folder and reads it back.
    learning_rates: by the first part of a parameter's name in VisionLanguageModel ("projector", "tower") where it is
    not --learning_rate.
    sampler: the order of the training samples; None shuffles.
    online_words: labels every batch's patches, where they come from no file.
    initial: the measures before training, of an earlier start; None takes them as soon as the model is ready.
    may_lose: images that may go missing under way (LlavaDataset.missing), on all ranks together.
    """

    model: AlignedTraining

    def __init__(
        self,
        *args: Any,
        probe: Probe,
        weights: Weights,
        learning_rates: Mapping[str, float] | None = None,
        sampler: Sampler[int] | None = None,
        initial: Mapping[str, float] | None = None,
        on_initial: Callable[[Mapping[str, float]], None] | None = None,
        online_words: OnlineWords | None = None,
        may_lose: int = 0,
        **keywords: Any,
    ) -> None:
        super().__init__(*args, **keywords)
        self.lost_images = LostImages(may_lose)
        self.probe = probe
        self.weights = weights
        self.learning_rates = dict(learning_rates or {})
        self.sampler = sampler
        self.initial = initial
        self.on_initial = on_initial
        self.online_words = online_words
        # `compute_loss` divides by the whole window itself: transformers must not divide again. (The two attributes
        # say so to different transformers versions.)
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._sums: dict[str, Tensor] = {}
        self._log_clock = time.perf_counter()
        self._samples_since_log = 0

    # ---- the loss

    def _get_num_items_in_batch(
        self, batch_samples: list[Mapping[str, Tensor]], device: torch.device
    ) -> Divisors | None:
        """The divisors of the accumulation window that `batch_samples` make up."""
        if not batch_samples:
            return None
        if self.online_words is not None:  # before the counts, which may be of labels
            for batch in batch_samples:
                batch.update(self.online_words(batch["pixel_values"], device, images_without_words(batch)))
        caption = sum((batch["labels"][:, 1:] != IGNORE_INDEX).sum() for batch in batch_samples)
        parts = self.model.objective.parts
        sums = [float(caption)]
        for objective in parts.values():
            counts = [objective.count(patch_regions(batch), patch_words(batch)) for batch in batch_samples]
            known = [float(count) for count in counts if count is not None]
            sums += [sum(known), float(len(counts) - len(known))]
        lost = sum(len(batch["lost_images"]) for batch in batch_samples if "lost_images" in batch)
        total = torch.tensor([*sums, float(lost)], device=device)
        self._all_reduce(total)
        self.lost_images.count(batch_samples, self.train_dataset.records, int(total[-1]))
        total = total / self.args.world_size
        # All ranks agree on what is unknown: one whose own batches tell must not divide otherwise.
        alignment = {name: total[2 * i + 1] if total[2 * i + 2] == 0 else None for i, name in enumerate(parts)}
        divisors = Divisors(total[0], alignment, len(batch_samples))
        self.begin_step(batch_samples, divisors)
        return divisors

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Divisors | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        step, total = self.state.global_step, self.state.max_steps
        self.bad_steps.before_forward()
        outputs = model(inputs, step=step, total_steps=total, divisors=num_items_in_batch, refuse_unsound=False)
        outputs["loss"] = self.bad_steps.after_forward(outputs["loss"], outputs.pop("unsound", False))
        for name, value in outputs.items():
            if name != "loss":
                self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._samples_since_log += len(inputs["sample_index"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """To the device, in the dtypes of the collator: under DeepSpeed transformers would round coverage to bf16."""
        return {name: value.to(self.args.device, non_blocking=True) for name, value in inputs.items()}

    def sample_id(self, index: int) -> str:
        return self.train_dataset.records[index].id

    # ---- the log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs = self.without_bad_steps(logs)
        if "loss" in logs:
            logs |= self._drain_sums()
        super().log(logs, start_time)

    def log_window(self) -> dict[str, Tensor]:
        return self._sums

    def restore_log_window(self, sums: dict[str, Tensor]) -> None:
        self._sums = {name: value.to(self.args.device) for name, value in sums.items()}

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
        weights = self.model.weights(self.state.global_step - 1, self.state.max_steps)
        return {
            "caption_loss": sums["caption_sum"] / max(sums["caption_count"], 1.0),
            **alignment_log(sums, weights),
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
        total, ranks, size = len(self.eval_dataset), self.args.world_size, self.args.per_device_eval_batch_size
        mine = range(self.args.process_index, total, ranks)
        most = math.ceil(math.ceil(total / ranks) / size)  # batches of the rank that has most
        model = self.model.model
        ask = None
        if self._is_sharded():
            ask = self._ask_engine
        elif not self.is_in_train:
            model.to(self.args.device)
        # ZeRO-3 gathers weights with all ranks: one that has run out of samples goes on with any.
        missing = most - math.ceil(len(mine) / size) if ask is not None else 0
        # In the precision that trains: transformers puts autocast around its own forward alone.
        with phase("the held-out measures"), self.accelerator.autocast():
            return self.probe.measure(
                model, self._batches(mine), self._all_reduce, ask, self._batches([0] * missing, size=1)
            )

    def _batches(self, samples: Sequence[int], size: int | None = None) -> Iterator[dict[str, Tensor]]:
        # No shuffling, and a generator of its own, since every iterator draws a seed: measuring must not move the
        # random state of training.
        loader = DataLoader(
            Subset(self.eval_dataset, samples),
            self.args.per_device_eval_batch_size if size is None else size,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
        )
        return (self._prepare_inputs(batch) for batch in loader)

    def _is_sharded(self) -> bool:
        return any(hasattr(parameter, "ds_id") for parameter in self.model.parameters())

    def _ask_engine(self, question: Callable[[VisionLanguageModel], Any]) -> Any:
        return self.model_wrapped(ask=question)

    def _all_reduce(self, tensor: Tensor) -> None:
        """Sum over ranks, in place."""
        if self.args.world_size > 1:
            there = tensor.to(self.args.device)
            dist.all_reduce(there)
            tensor.copy_(there)

    # ---- order and learning rates

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        return self.sampler if self.sampler is not None else super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        if self.sampler is not None and hasattr(loader, "set_sampler"):
            loader.set_sampler(self.sampler)  # see ModalityLengthSampler: else a resumed run may miss its epoch
        return loader

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """transformers' optimizer; parameters of `learning_rates` then move to groups with a rate of their own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.learning_rates:
            self._split_groups(optimizer)
        return optimizer

    def _split_groups(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError(
                f"--mm_projector_lr and --mm_vision_tower_lr need an optimizer of torch's kind, not "
                f"{type(optimizer).__name__}: take the 'optimizer' out of the DeepSpeed plan"
            )
        rates = {
            id(parameter): rate
            for part, rate in self.learning_rates.items()
            for parameter in getattr(self.model.model, part).parameters()
        }
        groups = []
        for group in optimizer.param_groups:
            shared = {key: value for key, value in group.items() if key != "params"}
            for rate in dict.fromkeys([None, *self.learning_rates.values()]):
                members = [parameter for parameter in group["params"] if rates.get(id(parameter)) == rate]
                if members:
                    groups.append({**shared, "params": members, **({} if rate is None else {"lr": rate})})
        optimizer.param_groups[:] = groups

    # ---- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The stage's files into `output_dir`; for a checkpoint with every bit of the weights. Called on every rank."""
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
        self.weights.save(folder, write=self.args.should_save, final=not _internal_call)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.state.stateful_callbacks[_LOST] = self.lost_images.state()
        super()._save_checkpoint(model, trial)

    def _init_training_state(self, *args: Any, **keywords: Any) -> tuple[int, int]:
        begun = super()._init_training_state(*args, **keywords)
        if _LOST in self.state.stateful_callbacks:  # of a run that goes on
            self.lost_images.restore(self.state.stateful_callbacks[_LOST])
        return begun

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        try:
            self.weights.load(Path(resume_from_checkpoint))
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"cannot go on from {resume_from_checkpoint}: {error}\n"
                "Remove that folder, and the run goes on from the checkpoint before it, or starts again"
            ) from error

    def _run_epoch(self, *args: Any, **keywords: Any) -> None:
        # transformers asks whether all is done behind a step only: a run that was killed after its last one, in the
        # middle of an epoch (--max_steps), would take one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **keywords)

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None):
        if resume_from_checkpoint is not None:
            self._refuse_another_length(max_steps, Path(resume_from_checkpoint))
        if self.is_deepspeed_enabled:
            prepared = self._prepare_deepspeed(max_steps, train_dataloader, resume_from_checkpoint)
        else:
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.model.model.padding_free:  # as soon as weights and attention are where they will run
            with self.accelerator.autocast():
                check_boundaries(self.model.model, self._ask_engine if self._is_sharded() else None)
        limit_waiting(self.args.ddp_timeout)
        if self.initial is None:
            self.initial = self.measure()
            self._log_clock = time.perf_counter()
            if self.on_initial is not None:
                self.on_initial(self.initial)
        return prepared

    def _prepare_deepspeed(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None):
        import deepspeed

        # DeepSpeed's own default without the key was "no clipping" once and is 1.0 now; here the flag decides, as it
        # does without DeepSpeed.
        plan = self.accelerator.state.deepspeed_plugin.hf_ds_config.config
        plan.setdefault("gradient_clipping", self.args.max_grad_norm)
        # ZeRO-3 casts nothing once a part was loaded in shards, and what it trains must have one dtype: projector,
        # adapters and objective follow the language model (DeepSpeed keeps fp32 copies of them all).
        dtype = compute_dtype(self.args)
        for parameter in self.model.parameters():
            if parameter.requires_grad and not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(dtype)
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
