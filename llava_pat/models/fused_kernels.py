"""Liger's fused Triton kernels in the language model: norms, rotary positions and SwiGLU, each in one pass over memory.

Its cross entropies stay out: they belong to a forward with labels, which training here never calls, and it looks at
supervised positions alone anyway. Source: liger-kernel, by transformers' own integration.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from llava_pat.types import DataError

WAY_OUT = "leave out --use_liger_kernel"
_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def fuse(llm: PreTrainedModel, config: Mapping[str, bool] | None = None) -> None:
    """Puts the kernels in place, also under adapters.

    config: transformers' `liger_kernel_config`, such as {"rope": false}. DataError where there is no GPU, no
    liger-kernel, a loss of Liger's is asked for, or it has no kernels for this kind of model.
    """
    asked = dict(config or {})
    if losses := [name for name in _LOSSES if asked.get(name)]:
        raise DataError(
            f"--liger_kernel_config: {' and '.join(losses)} would change nothing, as training has its own loss; leave "
            "it out"
        )
    if not torch.cuda.is_available():
        raise DataError(f"--use_liger_kernel True: its kernels need a GPU, and none is seen; {WAY_OUT}")
    if not is_liger_kernel_available():
        raise DataError(f"--use_liger_kernel True needs liger-kernel: pip install liger-kernel, or {WAY_OUT}")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = llm.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:  # transformers would go on without a word
        raise DataError(f"--use_liger_kernel True: Liger has no kernels for {kind}; {WAY_OUT}")
    apply_liger_kernel(llm, asked | dict.fromkeys(_LOSSES, False))
