"""Plans as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llava_pat.performance.gpus import FRAGMENTED, GIB, RESERVED
from llava_pat.performance.planning import Plan, Planner, variants

_ENOUGH_TOKENS = 1000  # of a micro-batch, for products that are large enough to be fast


def plan_text(plan: Plan) -> str:
    """One run in full."""
    run, memory, states = plan.run, plan.memory, plan.memory.states
    per_gpu = f"{run.micro_batch} sequences x {run.accumulation} steps x {run.sharing.ranks} GPUs"
    rows = [
        ("weights", states.weights),
        ("gradients", memory.gradients_then),
        ("optimizer", states.optimizer),
        ("buckets of gradients on their way", states.buckets),
        *_fullest(plan),
        ("reserved: CUDA, NCCL, workspaces", RESERVED),
    ]
    lines = [
        f"{run.name}: stage {run.stage}, {_how(plan)}, on {run.sharing.ranks} x {plan.gpu.name}",
        f"  a step of {run.global_batch} = {per_gpu}; memory for sequences of "
        f"{_tokens(plan, run.most_text_tokens)} tokens, time for {_tokens(plan, run.usual_text_tokens)}",
        *(f"  {name:46}{size / GIB:8.2f} GiB" for name, size in rows),
        f"  {'a GPU at its fullest':46}{memory.total / GIB:8.2f} GiB of {plan.gpu.memory / GIB:.1f}: {_verdict(plan)}",
    ]
    if states.host:
        lines.append(f"  {'in the machine, for each GPU':46}{states.host / GIB:8.2f} GiB")
    rate = f"{plan.utilisation:.0%} of {plan.gpu.rate / 1e12:.0f} TFLOP/s"
    seconds = f"  a step takes {plan.step_seconds:.1f} s at {rate}"
    return "\n".join([*lines, seconds + ("" if plan.run_seconds is None else f"; the run {_time(plan.run_seconds)}")])


def advice_text(plan: Plan, planner: Planner) -> str:
    """Without gradient checkpointing and with it: the largest micro-batch, and the flags that ask for it."""
    lines = []
    for run in variants(plan.run):
        flag = "True" if run.recipe.checkpointing else "False"
        name = "with gradient checkpointing" if run.recipe.checkpointing else "without gradient checkpointing"
        size = planner.largest_micro_batch(run)
        if not size:
            lines.append(f"  {name}: not even one sequence at a time fits")
            continue
        best = planner.plan(replace(run, micro_batch=size))
        small = size * _tokens(plan, run.usual_text_tokens) < _ENOUGH_TOKENS
        lines.append(
            f"  {name}: {size} sequences at a time fit, {best.step_seconds:.1f} s a step"
            + (" (too few tokens to keep a GPU busy)" if small else "")
            + f"\n      --activation_checkpointing {flag} --per_device_train_batch_size {size} "
            f"--global_batch_size {run.global_batch}"
        )
    return "\n".join(lines)


def presets_text(plans: Sequence[Plan], planner: Planner) -> str:
    """A line for each preset; for one that does not fit, the micro-batch with which it does."""
    width = max(len(plan.run.name) for plan in plans)
    lines = [f"{'preset':{width}}  stage  GiB a GPU  step      run"]
    for plan in plans:
        run_seconds = "" if plan.run_seconds is None else _time(plan.run_seconds)
        lines.append(
            f"{plan.run.name:{width}}  {plan.run.stage:5}  {plan.memory.total / GIB:9.1f}  {plan.step_seconds:5.1f} s  "
            f"{run_seconds:9} {_verdict(plan)}{'' if plan.fits else _remedy(plan, planner)}"
        )
    return "\n".join(lines)


def _remedy(plan: Plan, planner: Planner) -> str:
    size = planner.largest_micro_batch(plan.run)
    if size:
        return f"; it does with --per_device_train_batch_size {size}"
    return ", not with one sequence at a time either"


def _fullest(plan: Plan) -> list[tuple[str, float]]:
    memory, states = plan.memory, plan.memory.states
    if memory.fullest_in_update:
        return [("what the update takes (more than activations)", states.update)]
    gathered = "weights that are whole while they multiply" if plan.run.sharing.stage == 3 else "weights unpacked"
    rows = [(gathered, states.gathered)] if states.gathered else []
    return [*rows, (f"activations, and {FRAGMENTED:.0%} lost between them", memory.activations * (1 + FRAGMENTED))]


def _how(plan: Plan) -> str:
    recipe, sharing = plan.run.recipe, plan.run.sharing
    trains = {"projector": "the projector trains", "all": "all of the language model trains", "lora": "LoRA"}
    parts = [trains[recipe.trains]]
    if recipe.bits < 16:
        parts.append(f"over {recipe.bits} bits")
    if sharing.stage:
        offload = " with offload" if sharing.offload_optimizer else ""
        parts.append(f"ZeRO-{sharing.stage}{offload}")
    parts.append("gradient checkpointing" if recipe.checkpointing else "no gradient checkpointing")
    return ", ".join(parts)


def _verdict(plan: Plan) -> str:
    return "fits" if plan.fits else "does not fit"


def _tokens(plan: Plan, text_tokens: int) -> int:
    return 1 + plan.run.patches + text_tokens


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
