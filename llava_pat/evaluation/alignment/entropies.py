"""Von Neumann entropies of one set of vectors, features or projected patches: pooled over all images, and per image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llava_pat.analysis.entropy import PooledEntropy, spectrum_entropy, von_neumann_entropy


class Entropies:
    """name: "features" (before the projector) or "patches" (behind it). Keeps two numbers an image."""

    def __init__(self, name: str, width: int, device: torch.device) -> None:
        self.name = name
        self.pooled = PooledEntropy(width, device)
        self.per_image: dict[bool, list[float]] = {False: [], True: []}

    def update(self, vectors: Tensor) -> None:
        """Add images [I, N, width]."""
        vectors = vectors.float()
        self.pooled.update(vectors)
        for centred, values in self.per_image.items():
            values += von_neumann_entropy(vectors, centred).tolist()

    def result(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics, and the spectra and per-image values behind them."""
        metrics: dict[str, float] = {}
        arrays: dict[str, np.ndarray] = {}
        for centred, ending in ((False, ""), (True, "_centred")):
            spectrum = self.pooled.spectrum(centred)
            values = np.array(self.per_image[centred], dtype=np.float32)
            metrics[f"entropy_{self.name}{ending}"] = float(spectrum_entropy(spectrum))
            metrics[f"entropy_{self.name}_image{ending}"] = float(values.mean(dtype=np.float64))
            arrays[f"spectrum_{self.name}{ending}"] = spectrum.cpu().numpy()
            arrays[f"entropy_{self.name}_image{ending}"] = values
        return metrics, arrays
