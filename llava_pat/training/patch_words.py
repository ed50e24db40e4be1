"""Labels of patches in a run: the folder fits the run's tower, pixels and words, or the run does not start.

Read from the folder's files, or computed in the run by the CLIP that made the folder (`--patch_words online`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_pat.data.geometry import Geometry, geometry_for
from llava_pat.data.patch_words import (
    WORD_MEANS,
    FolderMeta,
    PatchWordsFolder,
    WordTokens,
    load_array,
    load_meta,
    load_own_words,
    placement_of,
    same_switches,
)
from llava_pat.data.word_list import WordList, WordListSettings
from llava_pat.models.fingerprint import text_fingerprint, tower_fingerprint
from llava_pat.models.loading import load_image_processor
from llava_pat.models.patch_labels import LabelSwitches, best_words
from llava_pat.models.patch_text import PatchText, load_patch_text
from llava_pat.training.flags import ConfigError

SWITCHES = tuple(field.name for kind in (LabelSwitches, WordListSettings) for field in dataclasses.fields(kind))


@dataclass(frozen=True)
class PatchWordSource:
    """Where a run's labels come from: one of `folder` and `online`."""

    meta: FolderMeta
    tower: str  # the CLIP that labels
    tokens: WordTokens
    folder: PatchWordsFolder | None
    online: OnlineWords | None

    def check_tower(self) -> None:
        """ConfigError when the folder's labels are another tower's. Reads all of its weights: once, on one rank."""
        _same("vision tower", self.tower, self.meta.tower_sha256, tower_fingerprint(self.tower), self.meta)
        if self.online is not None:
            _same("text encoder", self.tower, self.meta.text_sha256, text_fingerprint(self.tower), self.meta)

    def __str__(self) -> str:
        dropped = f", {len(self.tokens.dropped)} of them without tokens and left out" if self.tokens.dropped else ""
        return (
            f"patch labels {'computed by' if self.online else 'by'} {self.tower}: {self.meta.words} words{dropped}; "
            + ", ".join(f"{name} {value}" for name, value in self.meta.switches.items() if name in _SHOWN)
        )


_SHOWN = ("n", "sign", "centring", "source", "min_score")


def open_patch_words(
    path: str,
    mode: str,
    tower: str,
    switches: Mapping[str, object],
    geometry: Geometry,
    patch_size: int,
    aspect: str,
    tokenizer: PreTrainedTokenizerBase,
) -> PatchWordSource:
    """The labels of `path` for a run whose images go through `geometry`.

    mode: "file" or "online"; tower: whose labels they must be; switches: those that the run asks for. DataError or
    ConfigError for what does not fit; the tower's weights are looked at by `check_tower`.
    """
    unknown = sorted(set(switches) - set(SWITCHES))
    if unknown:
        raise ConfigError(f"patch_words_args has {', '.join(unknown)}; its switches are {', '.join(SWITCHES)}")
    folder = PatchWordsFolder(path) if mode == "file" else None
    meta = load_meta(path)
    same_switches(meta, switches, path)
    patches = (geometry.size // patch_size) ** 2
    ours = placement_of(geometry, patch_size)
    if meta.patches != patches or not _alike(meta.geometry, ours):
        raise ConfigError(
            f"--patch_words_path {path}: its labels are of {meta.patches} patches, images placed as {meta.geometry}; "
            f"this run has {patches}, placed as {ours} (--image_aspect_ratio {aspect}); label the images for this run"
        )
    words = load_own_words(Path(path), meta)
    tokens = WordTokens.of(words.words, tokenizer)
    online = _online(Path(path), meta, tower, words, tokens, geometry, aspect) if mode == "online" else None
    return PatchWordSource(meta, tower, tokens, folder, online)


def _alike(theirs: Mapping[str, object], ours: Mapping[str, object]) -> bool:
    """Sizes within 1 %: the edge before a crop is a whole number of pixels, in squares of several sizes."""
    return theirs["kind"] == ours["kind"] and all(abs(theirs[key] - ours[key]) < 0.01 for key in ("edge", "seen"))


def _same(what: str, tower: str, recorded: str, found: str, meta: FolderMeta) -> None:
    if recorded != found:
        raise ConfigError(
            f"--patch_words_path: its labels were made by the {what} of {meta.tower} (hash {recorded[:12]}), but "
            f"{tower} has hash {found[:12]}; label the images with it (bash scripts/label_patches.sh), or name the "
            "tower of the labels on purpose: --patch_words_tower"
        )


def _online(
    folder: Path, meta: FolderMeta, tower: str, words: WordList, tokens: WordTokens, geometry: Geometry, aspect: str
) -> OnlineWords:
    names = [field.name for field in dataclasses.fields(LabelSwitches)]
    switches = LabelSwitches(**{name: meta.switches[name] for name in names})
    clip = load_patch_text(tower)
    theirs = geometry_for(aspect, load_image_processor(tower, clip.tower.image_size))
    if theirs != geometry:
        raise ConfigError(
            f"--patch_words online: the labels' tower {tower} wants other pixels ({theirs}) than the run's "
            f"({geometry}); take its labels from files: --patch_words file"
        )
    if switches.needs_word_means and not (folder / WORD_MEANS).is_file():
        raise ConfigError(f"{folder} holds no {WORD_MEANS}; run `bash scripts/label_patches.sh` again")
    means = None
    if switches.needs_word_means:
        means = torch.from_numpy(load_array(folder / WORD_MEANS, (meta.words,)))
    return OnlineWords(clip, words.words, tokens, switches, means)


class OnlineWords:
    """Labels of a batch, computed as the folder's files were. No part of the model: nothing trains or is saved."""

    def __init__(
        self,
        clip: PatchText,
        words: tuple[str, ...],
        tokens: WordTokens,
        switches: LabelSwitches,
        means: Tensor | None,
    ) -> None:
        self._clip, self._words, self._tokens, self._switches, self._means = clip, words, tokens, switches, means
        self._vectors: Tensor | None = None

    @torch.no_grad()
    def __call__(self, pixels: Tensor, device: torch.device, without: Tensor | None = None) -> dict[str, Tensor]:
        """pixels [I, 3, S, S] as the collator gives them -> what WordTokens.batch gives, on `device`.

        without: bool [I], images that have no words.
        """
        if self._vectors is None:  # the first batch says where the run is
            self._clip.to(device)
            self._vectors = self._clip.words(self._words, self._switches.prompt)
            self._means = None if self._means is None else self._means.to(device)
        patches = self._clip.patches(pixels.to(device), self._switches.source)
        words, scores = best_words(patches, self._vectors, self._switches, self._means)
        if without is not None:
            words = words.masked_fill(without.to(device)[:, None, None], -1)
        return self._tokens.batch(words, scores)
