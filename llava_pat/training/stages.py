"""The stages as lists of named steps: parse, build, check, measure, train, measure, write."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llava_pat.alignment import build_planned
from llava_pat.analysis.vocabulary import load_vocabulary
from llava_pat.models.checkpoint import stage1_config
from llava_pat.models.llava_config import READABLE_BY_LLAVA, finetune_config, language_config
from llava_pat.models.llava_names import check_output_name, evaluation_command
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.training import output
from llava_pat.training.agreement import refuse_disagreement
from llava_pat.training.arguments import PretrainArguments, parse_pretrain
from llava_pat.training.checkpoints import checkpoint_to_go_on_from
from llava_pat.training.data_check import check_data
from llava_pat.training.failures import writing
from llava_pat.training.feature_cache import with_feature_cache
from llava_pat.training.finetune_arguments import FinetuneArguments, parse_finetune
from llava_pat.training.flags import ConfigError
from llava_pat.training.measure import Probe
from llava_pat.training.order import train_sampler
from llava_pat.training.parts import Parts, blamed_on, build_parts, compute_dtype, refuse_missing_folder
from llava_pat.training.phases import Phases, phase, watching
from llava_pat.training.preemption import StopWhenAsked
from llava_pat.training.progress import StepLines, table
from llava_pat.training.ranks import DrawApart, from_first
from llava_pat.training.rehearsal import rehearse
from llava_pat.training.run_config import write_config
from llava_pat.training.task import AlignedTraining
from llava_pat.training.trainer import AlignedTrainer
from llava_pat.training.weights import FullWeights, LoraWeights, ProjectorWeights, Weights

logger = logging.getLogger(__name__)

Arguments = PretrainArguments | FinetuneArguments

_TRAINED = (
    "Free some space, and give the same command again: it goes on from the last checkpoint, where training is done"
)


def pretrain(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Stage 1 from a command line: trains the projector, returns what metrics.json holds."""
    return _watched(parse_pretrain(argv))


def finetune(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Stage 2 from a command line: trains projector and language model, returns what metrics.json holds."""
    arguments = parse_finetune(argv)
    _refuse_unreadable_name(arguments)
    return _watched(arguments)


def _refuse_unreadable_name(arguments: FinetuneArguments) -> None:
    """LLaVA reads meaning into a folder's name: better now than after the run."""
    source, folder = arguments.model.model_name_or_path, arguments.training.output_dir
    refuse_missing_folder("model_name_or_path", source)
    with blamed_on("model_name_or_path"):
        family = language_config(source).model_type
    problems = check_output_name(Path(folder).absolute(), lora=arguments.adapter.lora_enable, family=family)
    if problems:
        raise ConfigError(f"--output_dir {folder}: {'; '.join(problems)}")


def _watched(arguments: Arguments) -> dict[str, Any]:
    with watching(arguments.training.ddp_timeout) if arguments.training.world_size > 1 else contextlib.nullcontext():
        return _run(arguments)


def _run(arguments: Arguments) -> dict[str, Any]:
    training = arguments.training
    folder = Path(training.output_dir)
    main = training.process_index == 0
    with phase("comparing how the ranks were started"):
        refuse_disagreement(arguments)
    resumable = output.claim(arguments, folder) and main
    done = output.finished(folder)
    if done is not None:
        _say(main, f"{folder} holds this run, finished. Delete it or give another --output_dir to run again.")
        _say(main, table(done))
        return done
    if main:
        output.refuse_unwritable(folder)
    checkpoint = from_first(checkpoint_to_go_on_from(folder) if resumable else None)

    set_seed(training.seed)
    parts = build_parts(arguments)
    task = build_task(arguments, parts)
    with phase("the data check, which the first rank does"):
        began = output.recall_images(folder) if checkpoint and main else None
        checked = check_data(parts, arguments.data, main, began)
    parts = parts._replace(train=checked.train, held_out=checked.held_out)
    manifests = {"training": checked.manifest, "held-out": checked.held_out_manifest}
    if checkpoint:
        output.refuse_other_data(folder, manifests, checked.lost)
    weights = build_weights(arguments, task, parts)
    if main:
        with blamed_on("output_dir"):
            if isinstance(arguments, FinetuneArguments):
                rehearse(weights, parts.tokenizer, folder)
            write_config(arguments, folder / output.CONFIG)  # last: from here on the folder is this run's
            if not checkpoint:
                output.remember_data(folder, manifests)
                if checked.seen is not None:
                    output.remember_images(folder, checked.seen)
    features: dict[str, Any] = {}
    if arguments.data.feature_cache is not None:
        with phase("the feature cache"):
            parts, features = with_feature_cache(parts, arguments, main)

    trainer = build_trainer(
        arguments,
        parts,
        task,
        weights,
        initial=output.recall_initial(folder) if checkpoint else None,
        on_initial=lambda measured: output.remember_initial(folder, measured) if main else None,
        may_lose=checked.may_lose,
    )
    if checkpoint:
        _say(main, f"going on from {checkpoint}")
    asked = StopWhenAsked()
    trainer.add_callback(asked)
    started = time.perf_counter()
    with asked.listening():
        trainer.train(resume_from_checkpoint=checkpoint)
    asked.raise_if_asked(trainer.state.global_step, trainer.state.max_steps)
    seconds = time.perf_counter() - started
    after = trainer.measure()

    with phase("saving the finished model"), writing("the finished model", folder, _TRAINED):
        trainer.save_model()
        trainer.save_state()
    metrics = summary(arguments, trainer.state.global_step, checkpoint, seconds, trainer.initial, after)
    metrics |= {"skipped_steps": len(trainer.bad_steps.skipped), "lost_images": len(trainer.lost_images.names)}
    metrics |= {"data_manifest": checked.manifest, **features}
    if main:
        output.write_metrics(folder, metrics)
        _say(main, f"\n{table(metrics)}\nwritten to {folder}")
        if isinstance(arguments, FinetuneArguments):
            print(_what_next(arguments, weights), flush=True)
    return metrics


def _what_next(arguments: FinetuneArguments, weights: Weights) -> str:
    """The command that evaluates what the run left."""
    folder, source = arguments.training.output_dir, arguments.model.model_name_or_path
    if weights.config["model_type"] not in READABLE_BY_LLAVA:
        return (
            f"LLaVA's own code does not load a {weights.config['model_type']}; for transformers and lmms-eval:\n"
            f"bash scripts/convert.sh {folder} {folder}-hf --to hf"
        )
    if arguments.adapter.lora_enable:
        return (
            f"a full checkpoint of it: python -m llava_pat.merge {folder} {re.sub('-?q?lora', '-merged', folder)}\n"
            "or evaluate the adapters with:\n"
            + evaluation_command(folder, base=source, template=arguments.model.version)
        )
    return "evaluate it with:\n" + evaluation_command(folder, base=None, template=arguments.model.version)


def summary(
    arguments: Arguments,
    steps: int,
    checkpoint: str | None,
    seconds: float,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> dict[str, Any]:
    """What metrics.json holds. Seconds and speed are of this start alone, not of a killed one before it."""
    training = arguments.training
    first = output.step_of(checkpoint) if checkpoint else 0
    per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    return {
        "stage": _stage(arguments),
        "objective": arguments.alignment.alignment,
        "seed": training.seed,
        "steps": steps,
        "resumed_from_step": first,
        "seconds": seconds,
        "samples_per_second": (steps - first) * per_step / seconds,
        "peak_memory_bytes": output.peak_memory_bytes(),
        **{f"{name}_init": value for name, value in before.items()},
        **{f"{name}_final": value for name, value in after.items()},
    }


def build_task(arguments: Arguments, parts: Parts) -> AlignedTraining:
    """The training module: model and alignment objective, which must find the data that it needs."""
    task = assemble_task(arguments, parts.model)
    given = {"regions": parts.train.regions, "patch_words": parts.words}
    with blamed_on("alignment"):
        task.objective.check_requirements({"captions"} | {name for name, data in given.items() if data is not None})
    return task


def assemble_task(arguments: Arguments, model: VisionLanguageModel) -> AlignedTraining:
    """As `build_task`, whatever the data."""
    plan = arguments.alignment.plan()
    with blamed_on("alignment"):
        objective = build_planned(plan, hidden_size=model.hidden_size, vision_width=model.vision_width)
    return AlignedTraining(model, objective, {name: part.weight for name, part in plan.items()})


def build_weights(arguments: Arguments, task: AlignedTraining, parts: Parts) -> Weights:
    """How this run's checkpoints are written and read."""
    model_arguments, data, training = arguments.model, arguments.data, arguments.training
    described = dict(
        vision_tower=model_arguments.vision_tower,
        vision_width=task.model.vision_width,
        projector_type=model_arguments.mm_projector_type,
        select_layer=model_arguments.mm_vision_select_layer,
        select_feature=model_arguments.mm_vision_select_feature,
        image_aspect_ratio=data.image_aspect_ratio,
        model_max_length=training.model_max_length,
        model_name_or_path=model_arguments.model_name_or_path,
    )
    if isinstance(arguments, PretrainArguments):
        return ProjectorWeights(task, stage1_config(task.model.llm.config, **described))
    chosen = training.save_dtype
    dtype = compute_dtype(training) if chosen == "auto" else getattr(torch, chosen)
    config = finetune_config(
        task.model.llm.config,
        **described,
        mm_projector_lr=training.mm_projector_lr,
        freeze_mm_mlp_adapter=model_arguments.freeze_mm_mlp_adapter,
        unfreeze_mm_vision_tower=parts.own_tower,
        dtype=str(dtype).removeprefix("torch."),
    )
    if arguments.adapter.lora_enable:
        return LoraWeights(task, config, dtype)
    return FullWeights(task, config, dtype, model_arguments.model_name_or_path, parts.own_tower)


def build_trainer(
    arguments: Arguments,
    parts: Parts,
    task: AlignedTraining,
    weights: Weights,
    initial: Mapping[str, float] | None = None,
    on_initial: Callable[[Mapping[str, float]], None] | None = None,
    may_lose: int = 0,
) -> AlignedTrainer:
    """The trainer with the probe and the log lines."""
    held_out = parts.held_out
    vocabulary = load_vocabulary(arguments.data.vocabulary_path) if arguments.data.vocabulary_path else None
    with blamed_on("vocabulary_path"):
        probe = Probe.build(held_out.regions if held_out else None, vocabulary, parts.tokenizer)
    rates, sampler = {}, None
    if isinstance(arguments, FinetuneArguments):
        asked = {"projector": arguments.training.mm_projector_lr, "tower": arguments.training.mm_vision_tower_lr}
        rates = {part: rate for part, rate in asked.items() if rate is not None}
        sampler = train_sampler(arguments.training, parts)
    training = copy.copy(arguments.training)
    training.use_liger_kernel = False  # the language model has its kernels; transformers would say that it gets none
    trainer = AlignedTrainer(
        model=task,
        args=training,
        data_collator=parts.collator,
        train_dataset=parts.train,
        eval_dataset=held_out,
        probe=probe,
        weights=weights,
        stage=_stage(arguments),
        learning_rates=rates,
        sampler=sampler,
        online_words=parts.words.online if parts.words else None,
        initial=initial,
        on_initial=on_initial,
        may_lose=may_lose,
        callbacks=[StepLines(), DrawApart(), Phases()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _stage(arguments: Arguments) -> int:
    return 1 if isinstance(arguments, PretrainArguments) else 2


def _say(main: bool, words: str) -> None:
    if main:
        print(words, flush=True)
