"""Comparison of an exported file with its model: outputs and speed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from .files import Run
from .graph import ImageModel

BAR = 1e-4
"""Maximum deviation of an output: absolute up to 1, relative above."""
SIZES = ((224, 224), (96, 160), (203, 310), (20, 33), (512, 640))
"""Heights and widths: square, oblong, odd, smaller than a window, large."""
BATCHES = (1, 3)


@dataclass
class Deviation:
    """The deviation ``off_by`` of a file for images (N, H, W), from ``ImageModel.deviates``."""

    images: tuple[int, int, int]
    off_by: float


def compare(graph: ImageModel, run: Run) -> list[Deviation]:
    """Compare a file with its model, on images of all ``SIZES`` or of its fixed size."""
    generator = torch.Generator().manual_seed(0)
    sizes = SIZES if graph.size is None else (graph.size,)
    deviations = []
    for batch, size in tqdm(list(product(BATCHES, sizes)), 'comparing', leave=False):
        image = _image(batch, size, generator)
        off_by = graph.deviates(run(image), graph.expected(image))
        deviations.append(Deviation((batch, *size), off_by))
    worst = max(deviations, key=lambda deviation: deviation.off_by)
    if worst.off_by > BAR:
        raise UserError(
            f'the exported file is wrong and was deleted: with {worst.images[0]} image(s) of '
            f'{worst.images[1]}x{worst.images[2]} it is off by {worst.off_by:.1e}, more than '
            f'{BAR:.0e}'
        )
    return deviations


def _image(batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=generator)


def speeds(graph: ImageModel, run: Run, size: tuple[int, int], repeat: int) -> list[float]:
    """Time the model in PyTorch and the file in turns, with one image."""
    image = _image(1, size, torch.Generator().manual_seed(0))
    steps: list[Callable] = [graph.expected, run]
    seconds: list[list[float]] = [[], []]
    for _ in range(repeat + 1):
        for step, own in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            step(image)
            own.append(time.perf_counter() - started)
    return [statistics.median(own[1:]) for own in seconds]
