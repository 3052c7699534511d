"""Some steps of a run, to find the batch size that fits and the time that it takes."""

import time
from itertools import islice

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper

from ..config import build_model, default_scope
from ..drawing.model_inputs import Feed

STEPS, MEMORY = 4, 0.85
"""Timed steps, and the share of a GPU's memory that they may take."""


class DoesNotFitError(Exception):
    """The batch does not fit into the memory of the device."""


def try_steps(cfg: Config, seed: int = 0) -> tuple[int, float, float]:
    """Train and predict for some steps with the data of a config.

    Returns:
        Steps in an epoch, seconds of a step, and seconds of a validation.

    Raises:
        DoesNotFitError: The batch is too large.
    """
    device = torch.device(get_device())
    feeds = [Feed(cfg, split, seed) for split in ('train', 'val')]
    with default_scope(cfg):
        model = build_model(cfg).to(device)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        for feed in feeds:
            feed.preprocessor = model.data_preprocessor
        try:
            times = [_train(model, optimizer, feeds[0], device), _predict(model, feeds[1], device)]
        except RuntimeError as error:
            if 'out of memory' not in str(error) and "can't allocate" not in str(error):
                raise
            raise DoesNotFitError from error
    if device.type == 'cuda':
        total = torch.cuda.get_device_properties(device).total_memory
        if torch.cuda.max_memory_allocated(device) > MEMORY * total:
            raise DoesNotFitError
    train, val = feeds
    return len(train.loader), times[0], times[1] * len(val.loader)


def _train(model: torch.nn.Module, optimizer: object, feed: Feed, device: torch.device) -> float:
    model.train()
    seconds: list[float] = []
    begin = time.perf_counter()
    for inputs, samples in islice(feed, STEPS):
        losses = model(inputs, samples, mode='loss')
        optimizer.update_params(model.parse_losses(losses)[0])  # type: ignore[attr-defined, operator]
        begin = _since(begin, seconds, device)
    return sorted(seconds)[len(seconds) // 2]


@torch.no_grad()
def _predict(model: torch.nn.Module, feed: Feed, device: torch.device) -> float:
    model.eval()
    seconds: list[float] = []
    begin = time.perf_counter()
    for inputs, samples in islice(feed, STEPS):
        model(inputs, samples, mode='predict')
        begin = _since(begin, seconds, device)
    return sorted(seconds)[len(seconds) // 2]


def _since(begin: float, seconds: list[float], device: torch.device) -> float:
    """Add the seconds since ``begin`` to a list, and return the time."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    now = time.perf_counter()
    seconds.append(now - begin)
    return now
