"""The command line of `python -m llava_pat.convert`: parse, open, write aside, compare, move into place."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from llava_pat.convert.checks import CheckError, check_logits, check_processor, made_up_image, round_weights
from llava_pat.data.geometry import Geometry, geometry_for
from llava_pat.data.templates import TEMPLATES, Template, get_template
from llava_pat.data.tokenize import encode, load_tokenizer
from llava_pat.models.checkpoint import PROJECTOR_BIN
from llava_pat.models.conversion import cast, compare, compare_tower, write_hf, write_llava, write_stage1
from llava_pat.models.from_folder import load_model
from llava_pat.models.hf_layout import ChatFormat
from llava_pat.models.llava_config import READABLE_BY_LLAVA, read_config
from llava_pat.models.llava_names import check_output_name, evaluation_command
from llava_pat.models.loading import load_image_processor, tower_image_size
from llava_pat.models.shards import is_local, read_file
from llava_pat.models.source import HF_RECORD, Checkpoint, find_tower, layout_of, open_checkpoint
from llava_pat.types import IMAGE_TOKEN, DataError, Turn

SMALL = 1_000_000_000
"""Parameters up to which logits are compared without being asked: more takes more memory than the conversion."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

DESCRIPTION = """\
Converts a checkpoint from one layout to another, one tensor at a time, and compares the result with its source.

  llava   LLaVA's own: what LLaVA's evaluation, lmms-eval --model llava and our training read
  hf      llava-hf: transformers' LlavaForConditionalGeneration, vLLM, lmms-eval --model llava_hf
  stage1  the projector alone (mm_projector.bin, config.json)

SRC's layout is found by its files. Adapters (LoRA) are merged by python -m llava_pat.merge first.
Weights keep their dtypes unless --dtype says otherwise, so there and back gives equal bits. OUT appears only after
everything was checked."""

EXAMPLES = """\
examples:
  python -m llava_pat.convert checkpoints/llava-v1.5-7b-pat checkpoints/llava-v1.5-7b-pat-hf
  python -m llava_pat.convert llava-hf/llava-1.5-7b-hf llava-v1.5-7b --vision_tower openai/clip-vit-large-patch14-336
  python -m llava_pat.convert checkpoints/llava-v1.5-7b-pretrain llava-v1.5-7b-s1 --to llava --base lmsys/vicuna-7b-v1.5
  python -m llava_pat.convert checkpoints/llava-v1.5-7b-pat projector --to stage1
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        "python -m llava_pat.convert",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("src", metavar="SRC", help="folder or hub id to convert")
    add("out", metavar="OUT", type=Path, help="folder to write; must not exist, or be empty")
    add("--to", choices=("llava", "hf", "stage1"), help="layout of OUT (default: hf, or llava for a llava-hf SRC)")
    add("--base", help="language model of a stage-1 SRC (default: the one its config.json names); for a llava-hf SRC "
        "without tokenizer files of its own: where LLaVA's tokenizer comes from")  # fmt: skip
    add("--vision_tower", help="folder or hub id of the tower (default: the one SRC names). It is written into "
        "config.json, so for other machines give the hub id")  # fmt: skip
    add("--tower", choices=("auto", "keep", "drop"), default="auto", help="llava-hf to LLaVA: whether OUT holds the "
        "tower's weights, which LLaVA reads only if they were trained. auto (default): if they differ from those of "
        "--vision_tower")  # fmt: skip
    add("--template", default="v1", choices=sorted(set(TEMPLATES) - {"plain"}), help="conversation template that SRC "
        "was trained with, for llava-hf's chat template (default: v1)")  # fmt: skip
    add("--dtype", choices=sorted(DTYPES), help="cast all weights (default: each keeps its own)")
    add("--max_shard_size", default="5GB", help="of a weight file, such as 5GB or 500MB (default: 5GB)")
    add("--verify", action=argparse.BooleanOptionalAction, default=None, help="compare logits with SRC's, both loaded "
        "in fp32 (default: up to 1e9 parameters). Tensors are compared always")  # fmt: skip
    add("--device", default="cpu", help="where logits are compared, such as cuda (default: cpu)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr that names the file and the way out."""
    arguments = parser().parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`rope_scaling` is deprecated")  # LLaVA's configs have the old word
    try:
        convert(arguments)
    except (ValueError, OSError, DataError, CheckError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    return 0


def convert(arguments: argparse.Namespace) -> None:
    """What the command does. Nothing is left at OUT unless all checks passed."""
    out: Path = arguments.out
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty; choose another OUT, or delete it")
    for flag in ("base", "vision_tower"):
        given = vars(arguments)[flag]
        if given is not None and is_local(given) and not Path(given).is_dir():
            raise ValueError(f"--{flag} {given}: no such folder (from {Path.cwd()}), and not a hub id")
    kind = layout_of(arguments.src)
    to = arguments.to or ("llava" if kind == "hf" else "hf")
    if to == kind:
        raise ValueError(f"{arguments.src} is in the layout {kind!r} already; say --to with another one")
    # LLaVA's layout and stage 1 hold no tower unless it was trained
    checkpoint = open_checkpoint(
        arguments.src, base=arguments.base, vision_tower=arguments.vision_tower, need_tower=to == "hf"
    )
    print(f"{arguments.src}: {kind} layout, {checkpoint.text.model_type}, {checkpoint.parameters:,} parameters")
    if kind == "hf" and to == "llava":
        checkpoint = settle_tower(checkpoint, arguments)
    if arguments.vision_tower is not None:
        checkpoint.settings["mm_vision_tower"] = arguments.vision_tower
    checkpoint = cast(checkpoint, None if arguments.dtype is None else DTYPES[arguments.dtype])
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        checked = {"hf": _to_hf, "llava": _to_llava, "stage1": _to_stage1}[to](checkpoint, aside, arguments)
        if out.is_dir():
            out.rmdir()
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _report(out, to, checkpoint, checked, arguments)


def settle_tower(checkpoint: Checkpoint, arguments: argparse.Namespace) -> Checkpoint:
    """llava-hf folders hold a tower always, LLaVA's only a trained one: decides which it is."""
    recorded = checkpoint.settings["mm_vision_tower"]
    name = arguments.vision_tower or recorded
    if not name:
        raise ValueError(
            f"{checkpoint.name} does not say which vision tower it was made with, and LLaVA's config.json must; say "
            "--vision_tower, such as openai/clip-vit-large-patch14-336"
        )
    if arguments.tower != "auto":
        return replace(checkpoint, tower_is_own=arguments.tower == "keep")
    try:
        same = compare_tower(checkpoint, find_tower(checkpoint.name, recorded, arguments.vision_tower))
    except OSError as error:
        if not recorded or HF_RECORD not in read_config(checkpoint.name):
            raise ValueError(
                f"the vision tower {name} is not here to be compared ({error}); say --tower drop if SRC's is the same, "
                "--tower keep if it was trained"
            ) from error
        print(f"vision tower {name} is not here to be compared; as SRC records, it is "
              f"{'trained, so written' if checkpoint.tower_is_own else 'not trained, so left out'}")  # fmt: skip
        return checkpoint
    print(f"vision tower: {'equals' if same else 'differs from'} {name}, so it is {'left out' if same else 'written'}")
    return replace(checkpoint, tower_is_own=not same)


def _to_hf(checkpoint: Checkpoint, folder: Path, arguments: argparse.Namespace) -> list[str]:
    template = get_template(arguments.template)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    image_size = tower_image_size(checkpoint.vision_tower, checkpoint.vision)
    processor = load_image_processor(checkpoint.vision_tower, image_size)
    chat = ChatFormat(template.opening, template.between, template.header, template.lead, template.close)
    with _bar("writing", _bytes(checkpoint, tower=True)) as bar:
        write_hf(
            checkpoint,
            folder,
            tokenizer=tokenizer.backend_tokenizer,
            chat=chat,
            image_processor=processor.to_dict(),
            image_size=image_size,
            max_shard_size=arguments.max_shard_size,
            progress=bar.update,
        )
    checked = [_compare(folder, checkpoint, arguments, tower=True)]
    geometry = geometry_for(checkpoint.settings["image_aspect_ratio"], processor)
    patches = (image_size // checkpoint.vision.patch_size) ** 2
    patches += checkpoint.settings["mm_vision_select_feature"] == "cls_patch"
    checked += check_processor(folder, tokenizer, template, geometry, patches)
    if _verifies(checkpoint, arguments):
        checked.append(_logits(folder, arguments.src, checkpoint, template, geometry, arguments))
    return checked


def _to_llava(checkpoint: Checkpoint, folder: Path, arguments: argparse.Namespace) -> list[str]:
    with _bar("writing", _bytes(checkpoint, tower=checkpoint.tower_is_own)) as bar:
        write_llava(checkpoint, folder, max_shard_size=arguments.max_shard_size, progress=bar.update)
    checked = [_compare(folder, checkpoint, arguments, tower=checkpoint.tower_is_own)]
    if checkpoint.kind == "hf" and _verifies(checkpoint, arguments):
        try:
            tower_at = find_tower(arguments.src, checkpoint.settings["mm_vision_tower"], arguments.vision_tower)
            processor = load_image_processor(tower_at, tower_image_size(tower_at, checkpoint.vision))
        except OSError as error:
            print(f"logits are not compared, since the vision tower is not here: {error}")
            return checked
        geometry = geometry_for(checkpoint.settings["image_aspect_ratio"], processor)
        arguments = argparse.Namespace(**vars(arguments) | {"vision_tower": tower_at})
        template = get_template(arguments.template)
        checked.append(_logits(Path(arguments.src), folder, checkpoint, template, geometry, arguments))
    return checked


def _to_stage1(checkpoint: Checkpoint, folder: Path, arguments: argparse.Namespace) -> list[str]:
    written = write_stage1(checkpoint, folder)
    stored = read_file(folder / PROJECTOR_BIN)
    for name, tensor in written.items():
        if not torch.equal(stored[name].read(), tensor.read()):
            raise CheckError(f"{folder}: {name} does not read back as it was written")
    return [f"{len(written)} tensors"]


def _logits(
    hf_folder: Path,
    other: str | Path,
    checkpoint: Checkpoint,
    template: Template,
    geometry: Geometry,
    arguments: argparse.Namespace,
) -> str:
    ours = load_model(other, base=arguments.base, vision_tower=arguments.vision_tower, dtype=torch.float32)
    tokenizer = load_tokenizer(ours.tokenizer_source)
    prompt = encode([Turn("human", f"{IMAGE_TOKEN}\nWhat is shown here?")], template, tokenizer).input_ids
    # llava-hf's folder may hold less precise numbers: its tower is a copy, and --dtype casts all
    model, parts = ours.model, (checkpoint.language, checkpoint.projector, checkpoint.tower)
    for module, tensors in zip((model.llm, model.projector, model.tower), parts, strict=True):
        round_weights(module, {tensor.dtype for tensor in tensors.values()})
    difference = check_logits(hf_folder, model, prompt, geometry.pixels(made_up_image()), arguments.device)
    return f"logits of {len(prompt)} tokens and an image (largest difference {difference:.1e})"


def _compare(folder: Path, checkpoint: Checkpoint, arguments: argparse.Namespace, tower: bool) -> str:
    with _bar("comparing", _bytes(checkpoint, tower)) as bar:
        count = compare(folder, checkpoint, progress=bar.update)
    return f"{count} tensors, bit by bit"


def _verifies(checkpoint: Checkpoint, arguments: argparse.Namespace) -> bool:
    return checkpoint.parameters <= SMALL if arguments.verify is None else arguments.verify


def _bytes(checkpoint: Checkpoint, tower: bool) -> int:
    parts = [checkpoint.language, checkpoint.projector, *([checkpoint.tower] if tower else [])]
    return sum(tensor.nbytes for part in parts for tensor in part.values())


def _bar(what: str, total: int) -> tqdm:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=not sys.stderr.isatty())


def _report(out: Path, to: str, checkpoint: Checkpoint, checked: list[str], arguments: argparse.Namespace) -> None:
    print(f"checked: {'; '.join(checked)}")
    path = shlex.quote(str(out))
    if to == "hf":
        print(f"done: {out}\nload it:\n  LlavaForConditionalGeneration.from_pretrained({str(out)!r})")
        print(f"  python -m lmms_eval --model llava_hf --model_args pretrained={path} --tasks mme,pope --batch_size 1")
    elif to == "stage1":
        print(f"done: {out}\nload it: bash scripts/finetune.sh --pretrain_mm_mlp_adapter {path}/mm_projector.bin")
    else:
        family = checkpoint.text.model_type
        for problem in check_output_name(out.resolve(), lora=False, family=family):
            print(f"warning: {problem}")
        if f"llava_{family}" not in READABLE_BY_LLAVA:
            print(f"warning: LLaVA's own code has no class for a {family} model; evaluate its llava-hf form")
        print(f"done: {out}\nload it:\n{evaluation_command(out, base=None, template=arguments.template)}")
