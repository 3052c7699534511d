"""The batches that a model gets in training or evaluation."""

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
from .predictions import as_rgb


class Feed:
    """The batches of a data loader after augmentation, normalisation and padding.

    Training batches equal those of the loops of ``gcvit_mm`` in one process with this seed, in
    their images, order and random numbers, for an epoch from 1. Other splits ignore the epoch.
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
        # The whole model is built, because it may change its preprocessor (CutMix, Mixup).
        self.preprocessor: Any = build_model(cfg).data_preprocessor
        self.metainfo: dict[str, Any] = self.loader.dataset.metainfo  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[tuple[Tensor, list[Any]]]:
        """Yield the inputs, (B, C, H, W), and the data samples of each batch."""
        batches: Any = self.loader.batch_sampler
        epochs = self.epoch - 1 if self.trains else 0
        if isinstance(batches.sampler, InfiniteSampler):
            batches.go_to(self.seed, 0, epochs * len(self.loader.dataset))  # type: ignore[arg-type]
            first = batches.first
        else:
            batches.go_to(self.seed, epochs, 0)
            first = epochs * len(batches)
        for iteration, data in enumerate(self.loader, first):
            seed_generators(self.seed, iteration, 0)  # as the training loops do before a step
            batch = self.preprocessor(data, self.trains)
            yield batch['inputs'], batch['data_samples']


def to_pictures(preprocessor: Any, inputs: Tensor) -> np.ndarray:
    """Undo the normalisation of images, (B, C, H, W), by a model's ``data_preprocessor``.

    Returns (B, H, W, 3) of uint8 in RGB, as ``as_rgb`` shows them; padding has the colour of
    normalised zeros.
    """
    pixels = inputs * getattr(preprocessor, 'std', 1) + getattr(preprocessor, 'mean', 0)
    # Images are loaded in BGR; mmpretrain and the other packages name the conversion differently.
    is_rgb = getattr(preprocessor, 'to_rgb', None) or getattr(
        preprocessor, '_channel_conversion', False
    )
    pixels = pixels.flip(1) if is_rgb and pixels.shape[1] == 3 else pixels
    loaded = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return np.stack([as_rgb(image) for image in loaded])
