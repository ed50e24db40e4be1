"""A tiny world for whole runs: 32 px images in patches of 8 (16 patches), widths 16 and 24, twelve training images.

Regions are spread unevenly (none on some images), captions differ in length, `mixed.json` has text-only records, and
`instruct.json` has those, several turns, and several images in a record.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
ASSETS = Path(__file__).parents[1] / "assets" / "llava_written"
SIDE, PATCH, VISION_WIDTH, WIDTH = 32, 8, 16, 24
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220)}
KINDS = ("square", "circle", "ring")

# An objective of somebody else's: own parameters, a count that the data do not tell, noise (so that a resumed run must
# also restore the random state), and a step at which it kills the run or sends it another signal.
FOREIGN = '''
"""Somebody's own objective."""
from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import nn

from llava_pat.alignment.base import AlignmentObjective
from llava_pat.alignment.pooling import label_vectors
from llava_pat.types import AlignmentInputs, AlignmentLoss


class Foreign(AlignmentObjective):
    requires = frozenset({"regions"})

    def __init__(self, *, hidden_size: int, noise: float = 0.1) -> None:
        super().__init__(schedule="constant")
        self.head = nn.Linear(hidden_size, hidden_size)
        self.noise = noise

    def forward(self, inputs: AlignmentInputs) -> AlignmentLoss:
        if os.environ.get("DIE_AT") == str(inputs.step):
            os.kill(os.getpid(), getattr(signal, os.environ.get("DIE_BY", "SIGKILL")))
        if inputs.regions.coverage.dtype != torch.float32:
            raise TypeError(f"coverage was rounded to {inputs.regions.coverage.dtype}")
        words = self.head(label_vectors(inputs).to(self.head.weight.dtype)).float()
        picked = inputs.patch_embeds.float().mean(1)[inputs.regions.image]
        noise = 1 + self.noise * torch.randn(len(words), device=words.device)
        total = ((words - picked).square().mean(-1) * noise).sum() + self.anchor(inputs)
        return AlignmentLoss(total, torch.tensor(float(len(words)), device=total.device))
'''


@dataclass(frozen=True)
class World:
    """Folders and files of the tiny world."""

    folder: Path

    def argv(self, out: Path, **flags: object) -> list[str]:
        """A stage-1 command line; `flags` override, None takes a flag away."""
        settings: dict[str, object] = {
            "model_name_or_path": self.folder / "llm",
            "vision_tower": self.folder / "clip",
            "version": "plain",
            "data_path": self.folder / "train.json",
            "image_folder": self.folder / "images",
            "regions_path": self.folder / "regions.jsonl",
            "eval_data_path": self.folder / "val.json",
            "eval_regions_path": self.folder / "regions_val.jsonl",
            "vocabulary_path": self.folder / "vocabulary.json",
            "alignment": "pat",
            "alignment_weight": 2,
            "bf16": False,
            "use_cpu": True,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "activation_checkpointing": False,
            "dataloader_num_workers": 0,
            "save_steps": 2,
            "save_total_limit": 10,
            "report_to": "none",
            "seed": 1,
            "output_dir": out,
        } | flags
        return [f"--{name}={value}" for name, value in settings.items() if value is not None]

    def finetune_argv(self, out: Path, **flags: object) -> list[str]:
        """A stage-2 command line, from the projector of a file; flags as in `argv`."""
        settings: dict[str, object] = {
            "version": "v1",
            "data_path": self.folder / "instruct.json",
            "eval_data_path": self.folder / "instruct_val.json",
            "pretrain_mm_mlp_adapter": self.folder / "projector" / "mm_projector.bin",
            "alignment": "none",
        }
        return self.argv(out, **(settings | flags))

    def environment(self, **more: str) -> dict[str, str]:
        """For subprocesses: one thread, this clone, this environment's ninja, the foreign objective importable."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        python_path = os.pathsep.join([str(ROOT), str(self.folder / "modules")])
        extensions = os.environ.get("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
        fixed = {"PATH": path, "PYTHONPATH": python_path, "TORCH_EXTENSIONS_DIR": extensions, "OMP_NUM_THREADS": "1"}
        return os.environ | fixed | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"} | more

    def start(self, *command: object, timeout: float = 400, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `python <command>` from the repository root to its end."""
        words = [sys.executable, *map(str, command)]
        return subprocess.run(
            words, env=self.environment(**environment), cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )


def write_world(folder: Path) -> World:
    """Models, a projector, data and the foreign objective, into an empty folder."""
    _models(folder)
    _projector(folder)
    _data(folder)
    package = folder / "modules" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "my_module.py").write_text(FOREIGN)
    return World(folder)


def _models(folder: Path) -> None:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    CLIPVisionModel(vision).save_pretrained(folder / "clip")
    processor = json.loads((ASSETS / "clip" / "preprocessor_config.json").read_text())
    processor |= {"crop_size": {"height": SIDE, "width": SIDE}, "size": {"shortest_edge": SIDE}}
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(processor))
    text = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=520, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(text).save_pretrained(folder / "llm")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(ASSETS / "llm" / name, folder / "llm" / name)


def _projector(folder: Path) -> None:
    """What a stage 1 would have left: the run's own random state must not matter for it."""
    from llava_pat.models.checkpoint import save_projector
    from llava_pat.models.projectors import build_projector

    torch.manual_seed(7)
    save_projector(build_projector("mlp2x_gelu", VISION_WIDTH, WIDTH), folder / "projector")


def _data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for split, how_many in (("train", 12), ("val", 5)):
        plain, mixed, instruct, lines = [], [], [], []
        for index in range(how_many):
            # 2, 0, 1, 3, 0, 1, ... regions: uneven, and some micro-batches have none
            objects = (2, 0, 1, 3, 0, 1)[index % 6]
            name, labels, entry = _image(folder / "images", f"{split}-{index}", objects, rng)
            if index % 6 != 4:  # some images have no line at all
                lines.append(json.dumps(entry))
            caption = " and ".join(labels) if labels else "nothing"
            identity = f"{split}-{index}"
            plain.append(_record(identity, name, "<image>\nWhat is here?", caption))
            if index % 4 == 2:
                mixed.append(_record(f"{identity}-text", None, "Say it.", "it is only text"))
            else:
                mixed.append(_record(identity, name, "<image>\nWhat is here?", caption))
            instruct.append(_instruction(identity, f"{split}-{max(index - 1, 0)}.png", name, caption, index))
        (folder / f"{split}.json").write_text(json.dumps(plain))
        (folder / ("mixed.json" if split == "train" else "mixed_val.json")).write_text(json.dumps(mixed))
        (folder / ("instruct.json" if split == "train" else "instruct_val.json")).write_text(json.dumps(instruct))
        regions = "regions.jsonl" if split == "train" else "regions_val.jsonl"
        (folder / regions).write_text("\n".join(lines) + "\n")
    (folder / "vocabulary.json").write_text(json.dumps({"kind": list(KINDS), "colour": list(COLOURS)}))


def _record(identity: str, image: str | None, question: str, answer: str) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": identity, **({"image": image} if image else {}), "conversations": turns}


def _instruction(identity: str, before: str, name: str, caption: str, index: int) -> dict:
    """In turn: two turns about an image, an image at the end, text only, two images in different turns."""
    ask, answer = {"from": "human"}, {"from": "gpt"}
    if index % 4 == 0:
        turns = ["<image>\nWhat is here?", caption, "And what else?", "it is all there is to say"]
    elif index % 4 == 1:
        turns = ["What is here?\n<image>", caption]
    elif index % 4 == 2:
        turns = ["Say it.", "it is only text", "Say it again, in many more words.", "only"]
    else:
        turns = ["<image>\nWhat is here?", "one", "And here? <image>", caption]
    images = {0: {"image": name}, 1: {"image": name}, 2: {}, 3: {"image": [before, name]}}[index % 4]
    said = [{**(answer if place % 2 else ask), "value": text} for place, text in enumerate(turns)]
    return {"id": identity, **images, "conversations": said}


def _image(folder: Path, name: str, objects: int, rng: np.random.Generator) -> tuple[str, list[str], dict]:
    height, width = (40, 32) if rng.random() < 0.5 else (32, 48)
    pixels = rng.integers(100, 160, (height, width, 3)).astype(np.uint8)
    labels, regions = [], []
    for _ in range(objects):
        colour, kind = list(COLOURS)[rng.integers(3)], KINDS[rng.integers(3)]
        x, y, side = int(rng.integers(6, width - 22)), int(rng.integers(0, height - 16)), int(rng.integers(9, 16))
        pixels[y : y + side, x : x + side] = COLOURS[colour]
        labels.append(f"{colour} {kind}")
        regions.append({"label": labels[-1], "bbox": [x, y, side, side]})
    file = f"{name}.png"
    Image.fromarray(pixels).save(folder / file)
    return file, labels, {"id": name, "image": file, "width": width, "height": height, "regions": regions}
