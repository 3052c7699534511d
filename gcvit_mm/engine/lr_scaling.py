"""The learning rate for another batch than a recipe's."""

import math

from mmengine.config import Config
from mmengine.dist import get_world_size

from ..errors import UserError


def effective_batch(cfg: Config) -> tuple[int, int, int]:
    """Images of a process, processes, and accumulated steps: their product makes a step."""
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    return cfg.train_dataloader.batch_size, get_world_size(), accumulated


def learning_rate_factor(cfg: Config) -> tuple[float, str] | None:
    """What the recipe's learning rate is to be multiplied by for this run's batch, and the rule.

    Adam's step does not depend on the gradient's size, so that its noise falls with the root of
    the batch alone: the square root (Malladi et al., 2022, arXiv 2205.10287). For others the
    factor is linear (Goyal et al., 2017, arXiv 1706.02677).

    Returns:
        The factor and the rule's name; None where the config does not say what batch it is for.
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
    """Change the config's learning rate to this run's batch.

    Raises:
        UserError: The config does not say what batch its learning rate is for.
    """
    scaled = learning_rate_factor(cfg)
    if scaled is None:
        raise UserError('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size')
    cfg.optim_wrapper.optimizer.lr *= scaled[0]
    cfg.auto_scale_lr.scaled = True
