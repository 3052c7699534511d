"""What a training or an evaluation gives its model, batch by batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.runner import Runner
from torch import Tensor

from ..config import build_model, default_scope
from ..engine.loops import seeded
from ..engine.randomness import seed_generators


class Feed:
    """The batches of a data loader as its model gets them, augmented, normalised and padded.

    Those of a training are what the loops of ``gcvit_mm`` have in one process with this seed: the
    same images in the same order, and the same random numbers.

    Args:
        cfg: The config.
        split: 'train', 'val' or 'test'; the config has this loader.
        seed: Of the training.
        epoch: Which time the data of 'train' are gone through, from 1.

    Attributes:
        metainfo: What the data set says of its classes.
        preprocessor: The model's ``data_preprocessor``.
    """

    def __init__(self, cfg: Config, split: str, seed: int, epoch: int = 1) -> None:
        self.seed, self.epoch = seed, epoch
        self.trains = split == 'train'
        settings = dict(cfg[f'{split}_dataloader'])
        settings.update(num_workers=0, persistent_workers=False)
        for name in ('worker_init_fn', 'prefetch_factor', 'timeout'):
            settings.pop(name, None)
        with default_scope(cfg):
            self.loader = Runner.build_dataloader(seeded(settings, seed), seed)
        # By the whole model, for some have settings of it elsewhere: CutMix and Mixup.
        self.preprocessor: Any = build_model(cfg).data_preprocessor
        self.metainfo: dict[str, Any] = self.loader.dataset.metainfo  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[tuple[Tensor, list[Any]]]:
        """Inputs, (B, C, H, W), and their data samples, batch by batch."""
        batches: Any = self.loader.batch_sampler
        before = self.epoch - 1 if self.trains else 0
        iteration = 0
        if isinstance(batches.sampler, InfiniteSampler):
            batches.go_to(self.seed, 0, before * len(self.loader.dataset))  # type: ignore[arg-type]
            iteration = batches.first
        else:
            batches.go_to(self.seed, before, 0)
            iteration = before * len(batches)
        for number, data in enumerate(self.loader, iteration):
            seed_generators(self.seed, number, 0)  # as before a step
            given = self.preprocessor(data, self.trains)
            yield given['inputs'], given['data_samples']


def to_pictures(preprocessor: Any, inputs: Tensor) -> np.ndarray:
    """Undo the normalisation of images.

    Args:
        preprocessor: The model's ``data_preprocessor``.
        inputs: What it made of images, (B, 3, H, W).

    Returns:
        (B, H, W, 3) of uint8 in RGB. Padding has the colour that normalised zeros stand for.
    """
    pixels = inputs * getattr(preprocessor, 'std', 1) + getattr(preprocessor, 'mean', 0)
    # Images are loaded in BGR. mmpretrain has a name of its own for turning them.
    is_rgb = getattr(preprocessor, 'to_rgb', None) or getattr(
        preprocessor, '_channel_conversion', False
    )
    pixels = pixels if is_rgb else pixels.flip(1)
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
