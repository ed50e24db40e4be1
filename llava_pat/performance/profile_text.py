"""A profile as a table."""

from __future__ import annotations

import statistics

from llava_pat.performance.phases import PHASES
from llava_pat.performance.profiling import Profile

_MIB, _GIB = 2**20, 2**30


def profile_text(profile: Profile) -> str:
    work, planned = profile.work, profile.planned
    lines = [
        f"{profile.shape}, {_recipe(profile)}: {work.sequences} sequences of {work.tokens} tokens, {work.images} "
        f"images, {work.supervised} supervised tokens",
        f"weights {_size(profile.weight_bytes)}; planned beside them and the optimizer: "
        f"{_size(planned.with_gradients)} at the peak, {_size(planned.forward)} behind the forward pass",
        "",
        *_table(profile),
    ]
    if profile.measured is not None:
        lines += ["", *_against_the_machine(profile)]
    return "\n".join(lines)


def _table(profile: Profile) -> list[str]:
    measured, flops = profile.measured, profile.flops.by_phase
    if measured is None:
        rows = [f"{'phase':26}{'GFLOP':>11}{'share':>8}"]
        rows += [
            f"{phase:26}{flops[phase] / 1e9:11.1f}{flops[phase] / profile.flops.total:8.1%}"
            for phase in PHASES
            if phase in flops
        ]
        return [*rows, f"{'step':26}{profile.flops.total / 1e9:11.1f}"]
    rows = [f"{'phase':26}{'seconds':>10}{'share':>8}{'peak MiB':>11}{'GFLOP':>11}{'of matrix rate':>16}"]
    for phase in PHASES:
        seconds, work = measured.seconds.get(phase, 0.0), flops.get(phase, 0.0)
        rate = f"{work / seconds / measured.matrix_rate:16.2f}" if work and seconds else ""
        peak = measured.peak_by_phase.get(phase, 0) / _MIB
        rows.append(f"{phase:26}{seconds:10.4f}{seconds / profile.step:8.1%}{peak:11.1f}{work / 1e9:11.1f}{rate}")
    total = profile.flops.total
    rows.append(
        f"{'step':26}{profile.step:10.4f}{1:8.1%}{measured.peak_bytes / _MIB:11.1f}{total / 1e9:11.1f}"
        f"{profile.utilisation:16.2f}"
    )
    return rows


def _against_the_machine(profile: Profile) -> list[str]:
    measured, loading = profile.measured, profile.measured.loading
    off = profile.planned.with_gradients / measured.peak_bytes - 1
    needed = loading.seconds / profile.step
    spread = (min(measured.step_seconds), statistics.median(measured.step_seconds), max(measured.step_seconds))
    lines = [
        f"steps {spread[0]:.3f} / {spread[1]:.3f} / {spread[2]:.3f} s (least, median, most of "
        f"{len(measured.step_seconds)}), {profile.work.images / profile.step:.2f} images/s; matrix products "
        f"{measured.matrix_rate / 1e12:.3f} TFLOP/s in this run",
        f"model FLOPs utilisation {profile.utilisation:.2f} of that rate",
    ]
    if profile.flops.recomputed:
        with_recomputed = (profile.flops.total + profile.flops.recomputed) / profile.flops.total
        lines[-1] += f"; {profile.utilisation * with_recomputed:.2f} with what checkpointing recomputes"
    return [
        *lines,
        f"peak beside weights and optimizer {_size(measured.peak_bytes)} measured, {off:+.1%} planned",
        f"data loading {loading.seconds:.3f} s a batch in one process ({loading.images / loading.seconds:.0f} "
        f"images/s, JPEGs of {loading.jpeg_bytes / 1000:.0f} kB): {needed:.2f} processes keep up with the step",
    ]


def _recipe(profile: Profile) -> str:
    recipe = profile.recipe
    trains = {"projector": "stage 1", "all": "stage 2", "lora": f"stage 2 by LoRA (r {recipe['lora_r']})"}
    checkpointing = ", gradient checkpointing" if recipe["checkpointing"] else ""
    return f"{trains[recipe['trains']]}, {recipe['dtype']}, {recipe['objectives']}{checkpointing}"


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB else f"{count / _MIB:.1f} MiB"
