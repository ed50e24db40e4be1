"""A few images as a checkpoint sees them: pixels, masks, each patch's words, heat maps, decompositions.

Written as data/<row>-pictures.json and .npz; report/files.py has the layout. Letters: see llava_pat/types.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llava_pat.analysis.matching_pursuit import matching_pursuit
from llava_pat.analysis.nearest_words import nearest_words
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.images import open_image
from llava_pat.data.regions import to_mask
from llava_pat.evaluation.alignment.decompositions import ATOMS
from llava_pat.evaluation.alignment.files import write_arrays, write_json
from llava_pat.evaluation.alignment.material import Material
from llava_pat.evaluation.alignment.models import Subject
from llava_pat.evaluation.alignment.readings import Readings
from llava_pat.evaluation.alignment.views import View
from llava_pat.types import Record

NEAREST = 5
DECOMPOSED = 4  # patches of an image, one a region


def choose_pictures(material: Material, count: int) -> list[int]:
    """Places of the images that are shown: spread evenly over those with regions, or over all without any."""
    places = range(len(material.records))
    if material.regions is not None:
        annotated = {name for name, entry in material.regions.items() if entry.regions}
        places = [place for place in places if material.records[place].images[0] in annotated]
    step = max(1.0, len(places) / count) if count else 1.0
    return [places[int(i * step)] for i in range(min(count, len(places)))]


class Pictures:
    """Collects the chosen images of one checkpoint during its pass; call it with every view and its patches."""

    def __init__(self, subject: Subject, readings: Readings, material: Material, dataset: LlavaDataset, places) -> None:
        self.subject, self.readings, self.material, self.dataset = subject, readings, material, dataset
        self.places = list(places)
        self.words, self.vectors, self.vocabulary_size = _heat_words(readings)
        self.units = F.normalize(self.vectors.float(), dim=-1)
        self.entries: dict[int, dict[str, Any]] = {}
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(self, view: View, patch_embeds: Tensor) -> None:
        for row, place in enumerate(view.places):
            if place in self.places:
                self._take(self.places.index(place), self.material.records[place], view, row, patch_embeds[row].float())

    def save(self, stem: Path) -> None:
        """Writes `stem`-pictures.json and `stem`-pictures.npz."""
        content = {
            "words": list(self.words),
            "vocabulary_size": self.vocabulary_size,
            "images": [self.entries[number] for number in sorted(self.entries)],
        }
        write_json(stem.with_name(f"{stem.name}-pictures.json"), content)
        write_arrays(stem.with_name(f"{stem.name}-pictures.npz"), self.arrays)

    def _take(self, number: int, record: Record, view: View, row: int, patches: Tensor) -> None:
        grid = self.subject.model.tower.grid
        patches = patches[-grid * grid :]  # a class token stands in front
        pixels, masks, labels = self._image(record)
        cosine = F.normalize(patches, dim=-1) @ self.units.T
        k = min(NEAREST, len(self.readings.piece_ids))
        value, word = nearest_words(patches, self.readings.piece_vectors, k)
        texts = np.array(self.readings.piece_words)
        self.arrays |= {
            f"pixels_{number}": pixels,
            f"masks_{number}": masks,
            f"cosine_{number}": cosine.cpu().numpy().astype(np.float16),
            f"nearest_words_{number}": texts[word.cpu().numpy()],
            f"nearest_cosine_{number}": value.cpu().numpy().astype(np.float16),
        }
        if self.vocabulary_size:
            self.arrays[f"nearest_entry_{number}"] = cosine[:, : self.vocabulary_size].argmax(-1).cpu().numpy()
        self.entries[number] = {
            "id": record.id,
            "image": record.images[0],
            "grid": [grid, grid],
            "caption": " ".join(turn.value.strip() for turn in record.turns if turn.role == "gpt"),
            "regions": [{"label": label} for label in labels],
            "decompositions": self._decompose(view, row, patches, labels),
        }

    def _image(self, record: Record) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """uint8 [H, H, 3] as the tower saw it, bool masks [R, H, H] after the same geometry, R labels; H is what the
        patches cover of the square (SigLIP's leave a rim)."""
        geometry, model = self.subject.geometry, self.subject.model
        side = model.tower.grid * model.patch_size
        path = self.dataset.image_path(record, record.images[0])
        with open_image(path, record.where) as image:
            pixels = geometry.pixels(image)
        mean, std = torch.tensor(geometry.mean).view(3, 1, 1), torch.tensor(geometry.std).view(3, 1, 1)
        shown = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)[:side, :side]
        masks, labels = [], []
        annotated = None if self.material.regions is None else self.material.regions.get(record.images[0])
        for region in annotated.regions if annotated is not None else ():
            mask = geometry.mask(to_mask(region, annotated.height, annotated.width))[:side, :side] >= 0.5
            if bool(mask.any()):
                masks.append(mask.numpy())
                labels.append(region.label)
        return shown.numpy(), np.stack(masks) if masks else np.zeros((0, side, side), dtype=bool), labels

    def _decompose(self, view: View, row: int, patches: Tensor, labels: list[str]) -> list[dict[str, Any]]:
        """The patch that each of the first regions covers most, as a sum of words with weights >= 0."""
        if view.regions is None:
            return []
        mine = (view.regions.image == row).nonzero().squeeze(-1)
        chosen = dict.fromkeys(view.regions.coverage[region].argmax().item() for region in mine)
        chosen = list(chosen)[:DECOMPOSED]
        if not chosen:
            return []
        count = min(ATOMS, len(self.readings.piece_ids))
        found = matching_pursuit(patches[chosen], self.readings.piece_vectors, count, non_negative=True)
        entries = []
        for place, words, weights, explained in zip(
            chosen, found.atoms.tolist(), found.coefficients.tolist(), found.explained.tolist(), strict=True
        ):
            taken = [i for i in words if i >= 0]
            atoms = [{"word": self.readings.piece_words[i], "coefficient": weights[k]} for k, i in enumerate(taken)]
            entries.append({
                "patch": place,
                "labels": self._labels_at(view, mine, place),
                "explained": explained[: len(taken)],
                "atoms": atoms,
                "nonnegative": True,
            })  # fmt: skip
        return entries

    def _labels_at(self, view: View, mine: Tensor, place: int) -> list[str]:
        """Labels over a patch, most covered first, as the tokenizer spells them."""
        over = [region for region in mine.tolist() if view.regions.coverage[region, place] > 0]
        over.sort(key=lambda region: -float(view.regions.coverage[region, place]))
        spelled = [
            self.subject.tokenizer.decode(view.regions.label_ids[region][view.regions.label_mask[region]]).strip()
            for region in over
        ]
        return list(dict.fromkeys(spelled))


def _heat_words(readings: Readings) -> tuple[list[str], Tensor, int]:
    """Distinct lower-case words of the heat map, their vectors [W, D], and how many are the object vocabulary's."""
    if readings.words is None:
        return [], readings.piece_vectors[:0], 0
    known = [word.lower() for word in readings.words.vocabulary.words]
    vectors = [readings.word_vectors]
    words = list(known)
    for label, vector in zip(readings.labels.vocabulary.words, readings.label_vectors, strict=True):
        if label.lower() not in words:
            words.append(label.lower())
            vectors.append(vector.unsqueeze(0))
    return words, torch.cat(vectors), len(known)
