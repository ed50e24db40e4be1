"""Linear layers that take the dtypes of quantised ones (bitsandbytes): a QLoRA step can be planned without it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_pat.models.adapters import linear_leaf_names
from llava_pat.models.vlm import VisionLanguageModel


class StandIn(nn.Linear):
    """Multiplies in its weight's dtype and answers in its input's, as bitsandbytes' Linear4bit does."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs.to(self.weight.dtype), self.weight, self.bias).to(inputs.dtype)


def pretend_quantized(model: VisionLanguageModel) -> None:
    """What loading in 4 or 8 bits and models/quantized.py make of a language model on the meta device, in place."""
    llm = model.llm
    words = (llm.get_input_embeddings(), llm.get_output_embeddings())
    leaves = set(linear_leaf_names(llm))
    for name, module in list(llm.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in leaves:
            stand_in = StandIn(module.in_features, module.out_features, module.bias is not None, device="meta")
            stand_in.weight, stand_in.bias = module.weight, module.bias
            llm.set_submodule(name, stand_in)
    quantized = {id(module.weight) for module in llm.modules() if isinstance(module, StandIn)}
    kept = {id(parameter) for part in words for parameter in part.parameters()}
    for parameter in llm.parameters():
        if id(parameter) not in quantized | kept:
            parameter.data = parameter.data.to(torch.float32)
