"""A file beside the model that it was made of: the same outputs, and how fast."""

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
"""The most that an output may be off, of numbers above 1 in proportion to them."""
SIZES = ((224, 224), (96, 160), (203, 310), (20, 33), (512, 640))
"""Height and width: square, oblong, odd, smaller than a window, large."""
BATCHES = (1, 3)


@dataclass
class Deviation:
    """How far a file is off: ``off_by`` of images (N, H, W), as ``ImageModel.deviates`` has it."""

    images: tuple[int, int, int]
    off_by: float


def compare(graph: ImageModel, run: Run) -> list[Deviation]:
    """Compare a file with its model, on images of all ``SIZES`` or of the one that it is for.

    Args:
        graph: The model.
        run: The file.

    Raises:
        UserError: The outputs are off by more than ``BAR``.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = SIZES if graph.size is None else (graph.size,)
    found = []
    for batch, size in tqdm(list(product(BATCHES, sizes)), 'comparing', leave=False):
        image = _image(batch, size, generator)
        found.append(Deviation((batch, *size), graph.deviates(run(image), graph.expected(image))))
    worst = max(found, key=lambda deviation: deviation.off_by)
    if worst.off_by > BAR:
        raise UserError(
            f'the export is wrong, and not kept: with {worst.images[0]} image(s) of '
            f'{worst.images[1]}x{worst.images[2]} it is off by {worst.off_by:.1e}, and {BAR:.0e} '
            'is allowed'
        )
    return found


def _image(batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=generator)


def speeds(graph: ImageModel, run: Run, size: tuple[int, int], repeat: int) -> list[float]:
    """Time the model in PyTorch and the file in turns, one image at a time.

    Args:
        graph: The model.
        run: The file.
        size: Height and width of the image.
        repeat: How often each is timed, after one time that is not.

    Returns:
        Medians in seconds: of the model, and of the file.
    """
    image = _image(1, size, torch.Generator().manual_seed(0))
    steps: list[Callable] = [graph.expected, run]
    seconds: list[list[float]] = [[], []]
    for _ in range(repeat + 1):
        for step, own in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            step(image)
            own.append(time.perf_counter() - started)
    return [statistics.median(own[1:]) for own in seconds]
