"""The stages as lists of named steps: parse, build, check, measure, train, measure, write."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llava_pat.alignment import build_objective
from llava_pat.analysis.vocabulary import load_vocabulary
from llava_pat.data.collate import Collator
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import geometry_for
from llava_pat.data.records import load_records
from llava_pat.data.regions import load_regions
from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.models.checkpoint import load_projector, save_config, stage1_config
from llava_pat.models.loading import load_image_processor
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.training import output
from llava_pat.training.arguments import DataArguments, ModelArguments, PretrainArguments, parse_pretrain
from llava_pat.training.flags import ConfigError
from llava_pat.training.measure import Probe
from llava_pat.training.progress import StepLines, table
from llava_pat.training.run_config import write_config
from llava_pat.training.task import AlignedPretraining
from llava_pat.training.trainer import PretrainTrainer
from llava_pat.types import DataError

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a stage-1 run is made of."""

    model: VisionLanguageModel
    tokenizer: Any
    train: LlavaDataset
    held_out: LlavaDataset | None
    collator: Collator


def pretrain(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Stage 1 from a command line: trains the projector, returns what metrics.json holds."""
    arguments = parse_pretrain(argv)
    training = arguments.training
    folder = Path(training.output_dir)
    main = training.process_index == 0
    checkpoint = output.claim(arguments, folder)
    done = output.finished(folder)
    if done is not None:
        _say(main, f"{folder} holds this run, finished. Delete it or give another --output_dir to run again.")
        _say(main, table(done))
        return done

    set_seed(training.seed)
    parts = build_parts(arguments)
    with blamed_on("alignment"):
        objective = build_objective(
            arguments.alignment.alignment,
            hidden_size=parts.model.hidden_size,
            vision_width=parts.model.vision_width,
            **arguments.alignment.objective_keywords(),
        )
        objective.check_requirements({"captions"} | ({"regions"} if parts.train.regions is not None else set()))
    for name, dataset in (("training", parts.train), ("held-out", parts.held_out)):
        if dataset is not None and main:
            report = dataset.check(parts.model.num_patches, progress=sys.stderr.isatty())
            print(f"{name} data: {report}", flush=True)
    if main:
        write_config(arguments, folder / output.CONFIG)

    task = AlignedPretraining(parts.model, objective, arguments.alignment.alignment_weight)
    trainer = build_trainer(arguments, parts, task)
    before = output.recall_initial(folder) if checkpoint else None
    if before is None:
        before = trainer.measure()
        if main:
            output.remember_initial(folder, before)
    if checkpoint:
        _say(main, f"going on from {checkpoint}")
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    after = trainer.measure()

    trainer.save_model()
    trainer.save_state()
    metrics = summary(arguments, trainer.state.global_step, checkpoint, seconds, before, after)
    if main:
        output.write_metrics(folder, metrics)
        _say(main, f"\n{table(metrics)}\nwritten to {folder}")
    return metrics


def summary(
    arguments: PretrainArguments,
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


def build_parts(arguments: PretrainArguments) -> Parts:
    """Model, tokenizer and data sets from the arguments; anything that does not fit is refused here."""
    model_arguments, data, training = arguments.model, arguments.data, arguments.training
    dtype = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    for flag in ("vision_tower", "model_name_or_path"):
        _refuse_missing_folder(flag, vars(model_arguments)[flag])
    with blamed_on("vision_tower", "model_name_or_path"):
        model = VisionLanguageModel.from_pretrained(
            model_arguments.vision_tower,
            model_arguments.model_name_or_path,
            model_arguments.mm_projector_type,
            model_arguments.mm_vision_select_layer,
            model_arguments.mm_vision_select_feature,
            dtype=dtype,
            attn_implementation=model_arguments.attn_implementation,
        )
    if model_arguments.pretrain_mm_mlp_adapter:
        with blamed_on("pretrain_mm_mlp_adapter"):
            load_projector(model_arguments.pretrain_mm_mlp_adapter, model.projector)
    model.freeze_for_stage1()
    with blamed_on("model_name_or_path"):
        tokenizer = load_tokenizer(model_arguments.model_name_or_path, training.model_max_length)
    if len(tokenizer) > model.vocab_size:
        raise ConfigError(
            f"{model_arguments.model_name_or_path}: the tokenizer has {len(tokenizer)} ids, the model "
            f"{model.vocab_size} embeddings; take the tokenizer that belongs to the model"
        )
    with blamed_on("vision_tower"):
        image_processor = load_image_processor(model_arguments.vision_tower, model.image_size)
        geometry = geometry_for(data.image_aspect_ratio, image_processor)

    with blamed_on("version"):
        template = get_template(model_arguments.version)

    def dataset(path: str, images: str, regions: str | None) -> LlavaDataset:
        return LlavaDataset(
            load_records(path),
            images,
            template,
            tokenizer,
            geometry,
            model.patch_size,
            load_regions(regions) if regions else None,
            training.model_max_length,
        )

    held_out = None
    if data.eval_data_path:
        images = data.eval_image_folder or data.image_folder
        held_out = dataset(data.eval_data_path, images, data.eval_regions_path)
    collator = Collator(model.num_patches, tokenizer.pad_token_id, training.model_max_length)
    return Parts(model, tokenizer, dataset(data.data_path, data.image_folder, data.regions_path), held_out, collator)


@contextlib.contextmanager
def blamed_on(*flags: str) -> Iterator[None]:
    """What transformers or a room of ours says about the user's files becomes an error of these flags."""
    try:
        yield
    except DataError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{' and '.join(f'--{flag}' for flag in flags)}: {error}") from error


def _refuse_missing_folder(flag: str, name: str) -> None:
    """transformers takes a folder that is not there for a hub id, and says only that it is no good one."""
    if (name.startswith(("/", ".", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise ConfigError(f"--{flag} {name}: no such folder (from {Path.cwd()}), and not a hub id")


def build_trainer(arguments: PretrainArguments, parts: Parts, task: AlignedPretraining) -> PretrainTrainer:
    """The trainer with the probe, the log lines, and what it writes into every checkpoint."""
    held_out = parts.held_out
    vocabulary = load_vocabulary(arguments.data.vocabulary_path) if arguments.data.vocabulary_path else None
    config = llava_config(arguments.model, arguments.data, parts.model, arguments.training.model_max_length)
    with blamed_on("vocabulary_path"):
        probe = Probe.build(held_out.regions if held_out else None, vocabulary, parts.tokenizer)
    trainer = PretrainTrainer(
        model=task,
        args=arguments.training,
        data_collator=parts.collator,
        train_dataset=parts.train,
        eval_dataset=held_out,
        probe=probe,
        write_config=lambda folder: save_config(config, folder),
        callbacks=[StepLines()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def llava_config(
    model_arguments: ModelArguments, data: DataArguments, model: VisionLanguageModel, model_max_length: int
) -> dict[str, Any]:
    """The config.json that LLaVA's stage 1 leaves."""
    return stage1_config(
        model.llm.config,
        vision_tower=model_arguments.vision_tower,
        vision_width=model.vision_width,
        projector_type=model_arguments.mm_projector_type,
        select_layer=model_arguments.mm_vision_select_layer,
        select_feature=model_arguments.mm_vision_select_feature,
        image_aspect_ratio=data.image_aspect_ratio,
        model_max_length=model_max_length,
        model_name_or_path=model_arguments.model_name_or_path,
    )


def _say(main: bool, words: str) -> None:
    if main:
        print(words, flush=True)
