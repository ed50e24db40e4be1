"""One process: the models in this thread, decoding of the next images and coding of the last masks in others.

Pillow, NumPy and pycocotools let other threads run while they work, so the models wait only where threads are too few.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from llava_pat.annotation.engine.work import Batch
from llava_pat.annotation.items import open_item
from llava_pat.annotation.pipeline import Annotated, Annotator, finish

_AHEAD = 2  # batches that are decoded before their turn, and batches that may wait to be coded


def run_local(
    annotator: Annotator, image_folder: Path, batches: Iterable[Batch], threads: int
) -> Iterator[tuple[Batch, list[Annotated]]]:
    """Every batch with its answers, in order. At most 2 * _AHEAD + 1 batches of pixels and masks are in memory."""
    config, stream = annotator.config, iter(batches)
    opening: deque[tuple[Batch, list[Future]]] = deque()
    finishing: deque[tuple[Batch, list[Future]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while True:
            while len(opening) <= _AHEAD and (batch := next(stream, None)) is not None:
                opening.append(
                    (batch, [pool.submit(open_item, one, image_folder, config.max_pixels) for one in batch.items])
                )
            if not opening:
                break
            batch, images = opening.popleft()
            masked = annotator.infer(batch.items, [image.result() for image in images])
            finishing.append((batch, [pool.submit(finish, one, config.selection, annotator.tools) for one in masked]))
            while len(finishing) > _AHEAD:
                yield _wait(*finishing.popleft())
        while finishing:
            yield _wait(*finishing.popleft())


def _wait(batch: Batch, lines: list[Future]) -> tuple[Batch, list[Annotated]]:
    return batch, [line.result() for line in lines]
