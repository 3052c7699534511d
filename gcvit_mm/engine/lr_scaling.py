"""Scaling of the learning rate to the batch size."""

import math

from mmengine.config import Config
from mmengine.dist import get_world_size

from ..errors import UserError


def effective_batch(cfg: Config) -> tuple[int, int, int]:
    """The factors of the images per step: batch per process, processes, accumulated batches."""
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    return cfg.train_dataloader.batch_size, get_world_size(), accumulated


def learning_rate_factor(cfg: Config) -> tuple[float, str] | None:
    """The factor of the learning rate for the batch size of this run, and its scaling rule.

    Adam normalises the gradient, so only its noise depends on the batch size: the learning rate
    grows with the square root (Malladi et al., 2022, arXiv 2205.10287). For other optimizers it
    grows linearly (Goyal et al., 2017, arXiv 1706.02677).

    Returns:
        The factor and the name of the rule; None if the config does not set a base batch size.
    """
    base = cfg.get('auto_scale_lr', {}).get('base_batch_size')
    if not base:
        return None
    ratio = math.prod(effective_batch(cfg)) / base
    optimizer = str(cfg.optim_wrapper.optimizer.type)
    if 'Adam' in optimizer:
        return math.sqrt(ratio), f'square root, as for {optimizer}'
    return ratio, f'linear, as for {optimizer}'


def scale_learning_rate(cfg: Config) -> None:
    """Scale the learning rate of the config to the batch size of this run."""
    scaled = learning_rate_factor(cfg)
    if scaled is None:
        raise UserError('--auto-scale-lr: set auto_scale_lr.base_batch_size in the config')
    cfg.optim_wrapper.optimizer.lr *= scaled[0]
    cfg.auto_scale_lr.scaled = True
