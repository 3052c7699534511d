"""Comparison of an exported file with its model: outputs and speed."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..config import test_dataset
from ..datasets.shapes import lay_out, paint
from ..errors import UserError
from .files import Run
from .graph import ImageModel

SIZES = ((224, 224), (96, 160), (203, 310), (20, 33), (512, 640))
"""Heights and widths: square, oblong, odd, smaller than a window, large."""
BATCHES = (1, 3)
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
MOST = 8
"""Number of images for a comparison."""


@dataclass
class Comparison:
    """The differences of a file from its model for images (N, H, W, C), by output."""

    images: Tensor
    actual: dict[str, Tensor]
    expected: Any
    differences: dict[str, float]
    bars: dict[str, float]

    @property
    def excess(self) -> float:
        """The largest difference relative to its bar; the file is wrong if it is above 1."""
        return max(value / self.bars[name] for name, value in self.differences.items())


def read_images(cfg: Config, given: str | None, most: int = MOST) -> list[Image.Image]:
    """Images for a comparison: given ones, or those of the test data, or else generated ones."""
    folder = given
    if folder is None:
        dataset = test_dataset(cfg)
        prefix = dataset.get('data_prefix') or ''
        prefix = prefix if isinstance(prefix, str) else next(iter(prefix.values()), '')
        folder = str(Path(dataset.get('data_root') or '', prefix))
    paths = sorted(x for x in Path(folder).rglob('*') if x.suffix.lower() in SUFFIXES)
    if given and not paths:
        raise UserError(f'--images {given}: no images are there: pass a folder with images')
    if not paths:
        rng = np.random.default_rng(0)
        return [Image.fromarray(paint(rng, lay_out(rng, 256, i), 256)) for i in range(most)]
    try:
        return [Image.open(path).convert('RGB') for path in paths[:most]]
    except OSError as error:
        raise UserError(f'--images {folder}: an image cannot be read: {error}') from error


def compare(
    graph: ImageModel, run: Run, images: Sequence[Image.Image], **inputs: Tensor
) -> list[Comparison]:
    """Compare a file with its model, on images of all ``SIZES`` or of its fixed size.

    A detector that finds no object is compared again with a minimum score of 0. Otherwise the file
    gets no other ``inputs``, so that its defaults are compared too.
    """
    supply = cycle(images)
    sizes = filter(graph.accepts, SIZES) if graph.size is None else (graph.size,)
    shapes = list(product(BATCHES, sizes))
    comparisons = []
    for batch, size in tqdm(shapes, 'comparing', leave=False):
        x = stack(islice(supply, batch), size, graph.channels)
        actual, expected = run(x, **inputs), graph.expected(x)
        comparisons.append(
            Comparison(x, actual, expected, graph.differences(actual, expected), graph.bars)
        )
    if graph.thresholds.get('score_threshold') and not any(
        len(one['boxes']) for each in comparisons for one in each.expected
    ):
        graph.thresholds['score_threshold'] = 0.0
        return compare(graph, run, images, **graph.inputs())
    return comparisons


def stack(images: Any, size: tuple[int, int], channels: int) -> Tensor:
    """Images resized to one size, (N, H, W, channels)."""
    pixels = np.stack([np.asarray(x.resize(size[::-1])) for x in images])
    return torch.from_numpy(pixels[..., np.arange(channels) % 3])


def speeds(steps: Mapping[str, Callable], image: Tensor, repeat: int) -> dict[str, float]:
    """Time steps in turns: the median of each in seconds, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeat + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step(image)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(own[1:]) for name, own in seconds.items()}
