"""LLaVA's own code under its pins: a process in another environment, which steps when it is told to."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from contestants.base import LEARNING_RATE, MAX_GRAD_NORM, Sample, Task, Weights
from llava_pat.performance.made_up import made_up_batch
from llava_pat.performance.shapes import Recipe, build_task
from llava_pat.types import IMAGE_TOKEN_INDEX

_WORKER = Path(__file__).with_name("llava_worker.py")


class Llava:
    """python: of LLaVA's environment; source: its repository at c121f04. On a CPU, whole or projector only."""

    def __init__(self, name: str, task: Task, weights: Weights, python: Path, source: Path) -> None:
        if task.device.type != "cpu" or task.trains == "lora":
            raise ValueError("LLaVA under its pins takes part on a CPU, in stage 1 or all of stage 2")
        self.name = name
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        write_folder(folder, task, weights)
        command = [str(python), str(_WORKER), "--llava_src", str(source), "--folder", str(folder)]
        with (folder / "log.txt").open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.torch = self._answer()["torch"]

    def step(self) -> Sample:
        return self._ask("step")

    def measure_memory(self) -> Sample:
        return self._ask("memory")

    def _ask(self, command: str) -> Sample:
        print(command, file=self.process.stdin, flush=True)
        return Sample(**self._answer())

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            log = (Path(self.folder.name) / "log.txt").read_text()
            raise RuntimeError(f"LLaVA's process ended:\n{log[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        print("quit", file=self.process.stdin, flush=True)
        self.process.wait(timeout=60)
        self.folder.cleanup()


def write_folder(folder: Path, task: Task, weights: Weights) -> None:
    """What llava_worker.py reads: llm, clip, mm_projector.bin, batch.safetensors, settings.json."""
    dtype = str(task.shape.dtype).removeprefix("torch.")
    for name, tensors, config, architecture in (
        ("llm", weights.llm, task.shape.llm, "LlamaForCausalLM"),
        ("clip", {f"vision_model.{key}": value for key, value in weights.tower.items()}, task.shape.tower,
         "CLIPVisionModel"),
    ):  # fmt: skip
        part = folder / name
        part.mkdir()
        held = {key: value.contiguous() for key, value in tensors.items()}
        save_file(held, part / "model.safetensors", metadata={"format": "pt"})
        kept = {key: value for key, value in config.to_dict().items() if isinstance(value, (int, float, str, bool))}
        kept |= {"architectures": [architecture], "torch_dtype": dtype}
        (part / "config.json").write_text(json.dumps(kept))
    side = task.shape.tower.image_size
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder / "clip"
    )
    torch.save(
        {f"model.mm_projector.{key}": value for key, value in weights.projector.items()}, folder / "mm_projector.bin"
    )
    save_file(_batch(task), folder / "batch.safetensors")
    settings = {
        "dtype": dtype, "trains": task.trains, "select_layer": task.shape.select_layer, "checkpointing": True,
        "projector": task.shape.projector, "learning_rate": LEARNING_RATE, "max_grad_norm": MAX_GRAD_NORM,
        "threads": torch.get_num_threads(), "attention": _attention(task),
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))


def _attention(task: Task) -> str:
    """LLaVA's torch 2.1.2 dies in a causal bf16 sdpa on several threads of a CPU ("double free or corruption")."""
    several = torch.get_num_threads() > 1
    return "eager" if several and task.shape.dtype != torch.float32 else "sdpa"


def _batch(task: Task) -> dict[str, Tensor]:
    """One IMAGE_TOKEN_INDEX an image: LLaVA expands it itself."""
    model = build_task(task.shape, Recipe("projector", task.shape.dtype), "meta").model
    batch = made_up_batch(model, task.sequences, task.text_tokens, uneven=task.uneven)
    kept = torch.ones(batch["input_ids"].shape[1], dtype=torch.bool)
    kept[2 : 1 + model.num_patches] = False  # BOS, the image's first position, the text
    assert bool((batch["input_ids"][:, 1 : 1 + model.num_patches] == IMAGE_TOKEN_INDEX).all())
    shortened = {name: batch[name][:, kept].contiguous() for name in ("input_ids", "labels", "attention_mask")}
    return {**shortened, "images": batch["pixel_values"]}
