"""LLaVA's own model under its pins, in a process of its own; llava.py talks to it. Runs in LLaVA's environment.

    llava_env/bin/python tests/bench/contestants/llava_worker.py --llava_src llava_src --folder FOLDER

How that environment is made: tests/parity/check_llava.py. FOLDER is what llava.py writes. The model is set up as
llava/train/train.py does it (gradient checkpointing, inputs that require gradients); its loss is its own. In stage 2
its language model is in fp32 under autocast, as the others' are: its published runs have fp32 copies from DeepSpeed.
Commands on stdin, one a line: step, memory, quit; for each one line of JSON on stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile


def build(folder: Path, settings: dict) -> torch.nn.Module:
    from llava.model import LlavaLlamaForCausalLM

    dtype = getattr(torch, settings["dtype"])
    trained = dtype if settings["trains"] == "projector" else torch.float32
    model = LlavaLlamaForCausalLM.from_pretrained(
        folder / "llm", torch_dtype=trained, attn_implementation=settings["attention"]
    )
    model.config.use_cache = False
    if settings["checkpointing"]:
        model.enable_input_require_grads()
    model.get_model().initialize_vision_modules(
        SimpleNamespace(
            vision_tower=str((folder / "clip").absolute()),
            mm_vision_select_layer=settings["select_layer"],
            mm_vision_select_feature="patch",
            mm_projector_type=settings["projector"],
            pretrain_mm_mlp_adapter=str(folder / "mm_projector.bin"),
            mm_patch_merge_type="flat",
        )
    )
    model.get_model().mm_projector.float()
    model.get_vision_tower().to(dtype=dtype)
    if settings["trains"] == "projector":
        model.requires_grad_(False)
        model.get_model().mm_projector.requires_grad_(True)
    if settings["checkpointing"]:
        model.gradient_checkpointing_enable()
    return model.train()


class Run:
    def __init__(self, folder: Path, settings: dict) -> None:
        self.model = build(folder, settings)
        self.dtype = getattr(torch, settings["dtype"])
        self.batch = load_file(folder / "batch.safetensors")
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=settings["learning_rate"])
        self.max_grad_norm = settings["max_grad_norm"]

    def step(self) -> float:
        half = self.dtype != torch.float32
        with torch.autocast("cpu", self.dtype) if half else contextlib.nullcontext():
            loss = self.model(**self.batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def peak(run: Run, folder: Path) -> tuple[float, int]:
    """As llava_pat/performance/cpu_memory.py, which this environment has not."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss = run.step()
    recorded.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    live = most = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        most = max(most, live)
    return loss, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llava_src", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    sys.path.insert(0, str(options.llava_src))
    settings = json.loads((options.folder / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    run = Run(options.folder, settings)
    print(json.dumps({"torch": torch.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "quit":
            return
        started, cpu_started = time.perf_counter(), time.process_time()
        most = None
        if command == "memory":
            loss, most = peak(run, options.folder)
        else:
            loss = run.step()
        sample = {
            "loss": loss,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_started,
            "peak_bytes": most,
        }
        print(json.dumps(sample), file=answers, flush=True)


if __name__ == "__main__":
    main()
