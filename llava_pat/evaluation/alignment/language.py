"""What the language model does with the patches: caption loss, and how near patches and text lie, layer by layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llava_pat.analysis.ima import IMASimilarity
from llava_pat.evaluation.alignment.models import Subject
from llava_pat.evaluation.alignment.views import View
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX

_STATES = 1 << 28  # bytes of hidden states, of all layers, at a time


class Language:
    """Runs the language model over the first `limit` images of the material, as many sequences at a time as fit into
    _STATES bytes of hidden states.

    text: the positions of the supervised text, as the plain template has them: the caption.
    """

    def __init__(self, subject: Subject, limit: int) -> None:
        self.subject, self.limit = subject, limit
        self.similarity = IMASimilarity()
        self.seen = 0
        self.loss = torch.zeros(2, dtype=torch.float64)

    def update(self, view: View, patch_embeds: Tensor) -> None:
        """Add the batch's images with their captions; patch_embeds [I, N, D], one image a sequence."""
        rows = min(len(view.places), max(0, self.limit - self.seen))
        if not rows:
            return
        self.seen += rows
        model, device = self.subject.model, self.subject.device
        states = (model.llm.config.num_hidden_layers + 1) * model.hidden_size * self.subject.dtype.itemsize
        sequences = max(1, _STATES // (states * view.batch["input_ids"].shape[1]))
        for some in torch.arange(rows).split(sequences):
            ids, labels = (view.batch[name][some].to(device) for name in ("input_ids", "labels"))
            mask = view.batch["attention_mask"][some].to(device)
            layers = model.forward_layers(ids, mask, patch_embeds[some.to(device)].to(self.subject.dtype))
            self.similarity.update(layers, ids == IMAGE_TOKEN_INDEX, labels != IGNORE_INDEX)
            total, count = model.caption_loss_sum(layers[-1], labels)
            self.loss += torch.stack([total.double(), count.double()]).cpu()

    def result(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Nothing when the language model was not run."""
        if not self.seen or not self.loss[1]:
            return {}, {}
        similarity = self.similarity.result().numpy()
        metrics = {
            "caption_loss": float(self.loss[0] / self.loss[1]),
            "ima_first": float(similarity[0]),
            "ima_last": float(similarity[-1]),
            "ima_mean": float(similarity.mean()),
        }
        return metrics, {"ima": similarity}
