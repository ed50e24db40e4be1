"""lmms-eval as the second harness: the command for a checkpoint, and the playground's VQA as a local task of it.

Measured with lmms-eval 0.7.3 and transformers 5.23: `llava_hf` needs `decord` (which its package does not ask for), and
a device_map (its default, an empty string, is refused); llava-hf checkpoints run at batch size 1 only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from llava_pat.evaluation.suite import DATA_ROOT, PLAYGROUND, is_playground, output_folder, spread, template_of
from llava_pat.evaluation.tasks.playground_vqa import PlaygroundVqa
from llava_pat.models.llava_names import conversation_mode, model_name
from llava_pat.models.source import layout_of
from llava_pat.types import DataError

logger = logging.getLogger(__name__)

TASK = f"{PLAYGROUND}_vqa"

_FUNCTIONS = '''\
"""Reads what llava_pat.evaluation.lmms wrote; lmms-eval calls these."""

from PIL import Image


def doc_to_visual(doc):
    with Image.open(doc["image"]) as image:
        return [image.convert("RGB")]


def doc_to_text(doc):
    return doc["text"]
'''

_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function {task}_functions.doc_to_visual
doc_to_text: !function {task}_functions.doc_to_text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: {max_new_tokens}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""


def write_task(folder: Path, lines: Sequence[dict], max_new_tokens: int = 128) -> Path:
    """A local task of lmms-eval, exact match; give the folder as --include_path.

    lines: {"question_id", "image" (path), "text", "answer"}. Returns the data file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder.resolve() / f"{TASK}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / f"{TASK}_functions.py").write_text(_FUNCTIONS, encoding="utf-8")
    settings = {"task": TASK, "data": json.dumps(str(data)), "max_new_tokens": max_new_tokens}
    (folder / f"{TASK}.yaml").write_text(_YAML.format(**settings), encoding="utf-8")
    return data


def playground_lines(root: Path, limit: int | None) -> list[dict]:
    """The playground's VQA for `write_task`; its ten people all gave the same answer, so exact match is its score."""
    benchmark = PlaygroundVqa()
    file = benchmark.path(root, benchmark.annotations_file)
    labels = {a["question_id"]: a["multiple_choice_answer"] for a in json.loads(file.read_text())["annotations"]}
    return [
        {"question_id": q.id, "image": str(q.images[0].resolve()), "text": q.text, "answer": labels[q.id]}
        for q in spread(benchmark.questions(root), limit)
    ]


def command(folder: str, tasks: str, out: Path, include: Path | None, conv_mode: str | None = None) -> list[str]:
    """The command line of lmms-eval for a checkpoint.

    Raises:
        DataError: lmms-eval is not installed, or it cannot read this layout; the message says what to do.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise DataError(
            f"lmms-eval is not installed for {sys.executable}. It needs torchvision, so give it an environment of its "
            "own: LLAVA_PAT_WITH=lmms LLAVA_PAT_VENV=/big/disk/lmms bash scripts/eval_lmms.sh ..."
        )
    kind = layout_of(folder)
    on_gpu = torch.cuda.is_available()
    settings = {"pretrained": folder}
    if kind == "hf":
        model = "llava_hf"
        settings |= {"dtype": "float16" if on_gpu else "float32"}
    elif kind == "llava":
        if importlib.util.find_spec("llava") is None:
            raise DataError(
                f"{folder} is in LLaVA's layout, which lmms-eval reads by LLaVA's own package, and `llava` is not "
                f"installed for {sys.executable}. Convert it (bash scripts/convert.sh {folder} {folder}-hf) and "
                "evaluate that; or activate an environment that has both llava and lmms-eval"
            )
        model = "llava"
        template = conversation_mode(template_of(folder, conv_mode))
        settings |= {"model_name": model_name(folder), "conv_template": template, "attn_implementation": "sdpa"}
    else:
        how = "python -m llava_pat.merge" if kind == "lora" else "bash scripts/convert.sh --to llava"
        raise DataError(f"{folder} is no whole model ({kind}), and lmms-eval reads no base beside it: {how} first")
    settings["device_map"] = "auto" if on_gpu else "cpu"
    words = [sys.executable, "-m", "lmms_eval", "--model", model]
    words += ["--model_args", ",".join(f"{name}={value}" for name, value in settings.items())]
    words += ["--tasks", tasks, "--batch_size", "1", "--log_samples", "--output_path", str(out)]
    words += [] if include is None else ["--include_path", str(include)]
    return words if on_gpu else [*words, "--device", "cpu"]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser("run_lmms.py", description="Evaluates a checkpoint with lmms-eval. Flags that are "
        "not listed here go to lmms-eval.")  # fmt: skip
    add = result.add_argument
    add("checkpoint", metavar="CKPT", help="llava-hf folder, or LLaVA-layout one where LLaVA's package is installed")
    add("tasks", nargs="?", help=f"lmms-eval's names with commas between, such as mme,pope; {TASK} is made here "
        "(default for a playground checkpoint)")  # fmt: skip
    add("--data_root", type=Path, default=DATA_ROOT, help=f"for {TASK} (default: {DATA_ROOT})")
    add("--questions", type=int, help=f"at most N questions of {TASK}, evenly spaced")
    add("--out", type=Path, help="default: CKPT/eval/lmms")
    add("--conv-mode", dest="conv_mode", help="template of a LLaVA-layout checkpoint (default: see run_benchmarks.py)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs lmms-eval; its exit status, or 2 for what can be said before."""
    arguments, further = parser().parse_known_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        tasks = arguments.tasks
        if tasks is None and not is_playground(arguments.checkpoint):
            raise DataError("name the tasks, such as mme,pope (python -m lmms_eval --tasks list)")
        tasks = TASK if tasks is None else tasks
        out = output_folder(arguments.checkpoint) / "lmms" if arguments.out is None else arguments.out
        include = out / "tasks" if TASK in tasks.split(",") else None
        words = command(arguments.checkpoint, tasks, out, include, arguments.conv_mode)
        if include is not None:
            write_task(include, playground_lines(arguments.data_root, arguments.questions))
    except (DataError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logger.info("%s", " ".join([*words, *further]))
    return subprocess.run([*words, *further]).returncode
