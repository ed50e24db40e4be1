"""Data loading of made-up photographs by the project's own data set and collator: seconds for a batch, in one process.

A run reads ahead in several processes (--dataloader_num_workers), off the step's path: what counts is whether
`seconds of a batch / processes` stays below the step.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from llava_pat.data.collate import Collator
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import CenterCrop
from llava_pat.data.records import load_records
from llava_pat.data.templates import get_template
from llava_pat.models.vlm import VisionLanguageModel

PHOTOGRAPH = (500, 375)  # width, height of COCO's usual images
_CLIP_MEAN, _CLIP_STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
_MOST_FILES = 16  # further records name the same files again


@dataclass(frozen=True)
class Loading:
    seconds: float  # of one batch in one process
    images: int  # of a batch
    jpeg_bytes: float  # mean size of the files


def time_loading(model: VisionLanguageModel, sequences: int, text_tokens: int) -> Loading:
    """Decodes, places, tokenises and collates one batch of `sequences` JPEGs of 500 x 375 with captions."""
    with made_up_data(model.image_size, model.patch_size, sequences, text_tokens) as (dataset, jpeg_bytes):
        collate = Collator(model.num_patches, 0, 2 * model.num_patches + text_tokens)
        collate([dataset[0]])  # the decoder and the tokenizer are loaded with the first one
        started = time.perf_counter()
        collate([dataset[index] for index in range(sequences)])
        return Loading(time.perf_counter() - started, sequences, jpeg_bytes)


@contextmanager
def made_up_data(size: int, patch_size: int, images: int, text_tokens: int) -> Iterator[tuple[LlavaDataset, float]]:
    """A data set of captioned JPEGs for CLIP's square of `size` pixels, and the mean bytes of a file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [f"{number}.jpg" for number in range(min(images, _MOST_FILES))]
        for number, file in enumerate(files):
            _photograph(number).save(folder / file, quality=90)
        caption = "a" * (text_tokens - 1)  # a token a byte, and the newline behind a caption
        records = [
            {
                "id": str(number),
                "image": files[number % len(files)],
                "conversations": [
                    {"from": "human", "value": "<image>"},
                    {"from": "gpt", "value": caption},
                ],
            }
            for number in range(images)
        ]
        (folder / "records.json").write_text(json.dumps(records), encoding="utf-8")
        geometry = CenterCrop(size, _CLIP_MEAN, _CLIP_STD)
        dataset = LlavaDataset(
            load_records(folder / "records.json"), folder, get_template("plain"), byte_tokenizer(), geometry,
            patch_size,
        )  # fmt: skip
        yield dataset, sum((folder / file).stat().st_size for file in files) / len(files)


def _photograph(seed: int) -> Image.Image:
    """Smooth shapes with grain: about 100 kB as a JPEG of quality 90, as photographs of this size have."""
    width, height = PHOTOGRAPH
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (height // 25, width // 25, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = random.normal(0, 12, smooth.shape)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte: a tokenizer without files."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>"])}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
