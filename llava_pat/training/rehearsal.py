"""Saving and reloading, tried before the first step: what would fail after a day of training fails now."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from llava_pat.data.tokenize import load_tokenizer
from llava_pat.models.llava_config import language_config
from llava_pat.training.flags import ConfigError
from llava_pat.training.weights import Weights

_PROBE = "A chat. USER: What is left of the 3 red circles? ASSISTANT: [0.12, 0.30, 0.55, 0.91]"


def rehearse(weights: Weights, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the checkpoint's small files below `folder`, read them back, compare; and see that the large ones fit.

    Weights are not written: their names and shapes are checked by the layout itself. ConfigError says what went wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder).free, weights.bytes_on_disk()
    if free < needed:
        raise ConfigError(
            f"{folder}: {free / 1e9:.1f} GB free, the finished checkpoint takes about {needed / 1e9:.1f} GB; free some "
            "space or choose another --output_dir"
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".rehearsal-") as scratch:
        trial = Path(scratch)
        try:
            weights.save_companions(trial)
            found = language_config(trial)
            if weights.has_tokenizer:
                GenerationConfig.from_pretrained(trial)
                again = load_tokenizer(trial, tokenizer.model_max_length)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{folder}: a checkpoint of this run could not be written and read back: {error}"
            ) from error
    asked, found = weights.task.model.llm.config.to_dict(), found.to_dict()
    for name in (
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "rope_parameters",
        "tie_word_embeddings",
    ):
        ours, theirs = asked.get(name), found.get(name)
        if ours != theirs:
            raise ConfigError(f"{folder}: config.json does not come back: {name} is {ours!r} here and {theirs!r} there")
    if weights.has_tokenizer and again.encode(_PROBE) != tokenizer.encode(_PROBE):
        raise ConfigError(f"{folder}: the tokenizer does not come back: {_PROBE!r} has other ids in the copied files")
