"""Faults for tests to train with: a config imports this module, and names one."""

import os
import signal
import time
from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS


@HOOKS.register_module()
class NanImages(Hook):
    """Images that are not a number, in some iterations, which are counted from 0."""

    priority = 'VERY_HIGH'

    def __init__(self, iterations: list[int]) -> None:
        self.iterations = iterations

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter in self.iterations:
            data_batch['inputs'] = [image * torch.nan for image in data_batch['inputs']]


@HOOKS.register_module()
class InfiniteGradient(Hook):
    """A gradient that is infinite, in an iteration, of a loss that is finite."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train(self, runner: Any) -> None:
        parameter = next(p for p in runner.model.parameters() if p.requires_grad)
        parameter.register_hook(
            lambda grad: grad * torch.inf if runner.iter == self.iteration else grad
        )


@TRANSFORMS.register_module()
class Stall(BaseTransform):
    """A file system that does not answer."""

    def transform(self, results: dict) -> dict:
        time.sleep(1000)
        return results


@TRANSFORMS.register_module()
class Die(BaseTransform):
    """A worker that the system kills, as it does where memory ends."""

    def transform(self, results: dict) -> dict:
        os.kill(os.getpid(), signal.SIGKILL)
        return results
