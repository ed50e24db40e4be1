"""What LLaVA reads out of a folder's name, and the command that evaluates the folder.

Source: get_model_name_from_path (llava/mm_utils.py), load_pretrained_model (llava/model/builder.py), and the scripts
under llava/eval (haotian-liu/LLaVA at c121f04). All rules look at the lower-cased last part of the path.
"""

from __future__ import annotations

import shlex
from pathlib import Path

_CONV_MODES = {
    "v1": "vicuna_v1",
    "vicuna_v1": "vicuna_v1",
    "llava_v1": "llava_v1",
    "v0": "llava_v0",
    "llava_v0": "llava_v0",
    "llama_2": "llava_llama_2",
    "llava_llama_2": "llava_llama_2",
    "mistral_instruct": "mistral_instruct",
    "mistral_direct": "mistral_direct",
    "chatml_direct": "chatml_direct",
    "mpt": "mpt",
    "plain": "plain",
}
"""Our template names -> names in llava/conversation.py."""


def model_name(folder: str | Path) -> str:
    """The name LLaVA gives a folder: its last part, with the parent's in front of a `checkpoint-N`."""
    parts = str(folder).strip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


def check_output_name(name: str | Path, *, lora: bool, family: str = "llama", template: str | None = None) -> list[str]:
    """What is wrong with a folder's name (its last part, as in LLaVA), each with the way out; [] when it is fine.

    lora: whether the folder will hold adapters. family: the language model's model_type; LLaVA picks its class by name.
    template: what the model was trained with, if names should be held to it where LLaVA guesses (run_llava, cli).
    """
    last = Path(name).name
    name = model_name(name)
    lower = name.lower()
    problems = []
    if last.startswith("checkpoint-"):
        problems.append(
            f"{last!r} starts with 'checkpoint-', LLaVA's own name for intermediate folders (it writes the projector "
            "elsewhere); choose another name"
        )
    if "llava" not in lower:
        problems.append(f"{name!r} does not hold 'llava', so LLaVA would load a plain language model; add it")
    if lora and "lora" not in lower:
        problems.append(f"{name!r} does not hold 'lora', so LLaVA would not look for the adapters; add it")
    if not lora and "lora" in lower:
        problems.append(
            f"{name!r} holds 'lora', so LLaVA would expect adapters and a --model-base; take it out ('-merged')"
        )
    if "plain" in lower:
        problems.append(f"{name!r} holds 'plain', for which LLaVA's scripts take a template that does not exist")
    if "mpt" in lower and family != "mpt":
        problems.append(f"{name!r} holds 'mpt', so LLaVA would build its MPT class around a {family} model")
    if lora and family == "mistral":
        problems.append(
            "LLaVA reads adapters with its Llama class whatever the base is: merge them, and put 'mistral' in the name"
        )
    elif "mistral" in lower and family != "mistral" and "mpt" not in lower:
        problems.append(f"{name!r} holds 'mistral', so LLaVA would build its Mistral class around a {family} model")
    elif "mistral" not in lower and family == "mistral":
        problems.append(f"{name!r} does not hold 'mistral', so LLaVA would build its Llama class; add it")
    if template in ("v1", "vicuna_v1", "llava_v1") and named_conversation(name) != "llava_v1":
        problems.append(
            f"{name!r} makes LLaVA's run_llava and cli talk in {named_conversation(name)!r}; put 'v1' in the name"
        )
    return problems


def named_conversation(name: str) -> str:
    """The template that LLaVA's run_llava and cli take from a name, where no --conv-mode is given."""
    lower = name.lower()
    for mark, conversation in (
        ("llama-2", "llava_llama_2"),
        ("mistral", "mistral_instruct"),
        ("v1.6-34b", "chatml_direct"),
        ("v1", "llava_v1"),
        ("mpt", "mpt"),
    ):
        if mark in lower:
            return conversation
    return "llava_v0"


def conversation_mode(template: str) -> str:
    """LLaVA's --conv-mode for one of our template names. Raises ValueError for a template that LLaVA lacks."""
    if template not in _CONV_MODES:
        raise ValueError(f"LLaVA has no conversation {template!r}; it has: {', '.join(sorted(set(_CONV_MODES)))}")
    return _CONV_MODES[template]


def evaluation_command(folder: str | Path, *, base: str | None, template: str) -> str:
    """The commands that answer questions with this folder: LLaVA's own script, and lmms-eval's (none for adapters).

    base: --model-base, for adapters and projectors; None for a full model. lmms-eval takes full models only.
    """
    mode = conversation_mode(template)
    path = shlex.quote(str(folder))
    lines = [
        "python -m llava.eval.model_vqa_loader",
        f"    --model-path {path}",
        *([f"    --model-base {shlex.quote(base)}"] if base is not None else []),
        "    --question-file QUESTIONS.jsonl --image-folder IMAGES --answers-file ANSWERS.jsonl",
        f"    --temperature 0 --conv-mode {mode}",
    ]
    command = " \\\n".join(lines)
    if base is not None:
        return command
    lmms = [
        "accelerate launch --num_processes=1 -m lmms_eval --model llava",
        f"    --model_args pretrained={path},model_name={shlex.quote(model_name(folder))},conv_template={mode},"
        "attn_implementation=sdpa,device_map=auto",
        "    --tasks mme,pope --batch_size 1 --log_samples --output_path logs/",
    ]
    return command + "\n\n" + " \\\n".join(lmms)
