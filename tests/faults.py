"""Faults for tests to train with: a config imports this module, and names one."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmengine.config import config
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

# Each start of a training would format its config several times, for seconds.
config.FormatCode = lambda text, **_: (text, True)


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


@HOOKS.register_module()
class LossRecorder(Hook):
    """Writes the loss of each step, averaged over the processes, into the work directory."""

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        loss = torch.as_tensor(float(outputs['loss']), dtype=torch.float64)
        all_reduce(loss, 'mean')
        if runner.rank == 0:
            with open(f'{runner.work_dir}/losses', 'a') as file:
                file.write(f'{runner.iter} {loss.item()!r}\n')


@HOOKS.register_module()
class KillOnce(Hook):
    """Kills the last process after an iteration, the first time that it comes there."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        done = Path(runner.work_dir, 'killed')
        last = runner.rank == runner.world_size - 1
        if last and runner.iter == self.iteration and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class Hang(Hook):
    """The first process hangs in an iteration, so that the others wait for it."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.rank == 0 and runner.iter == self.iteration:
            print('hangs', flush=True)
            time.sleep(1000)


@HOOKS.register_module()
class FillDisk(Hook):
    """Fills the file system of the work directory in an iteration, and logs more than a page."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.iteration:
            with contextlib.suppress(OSError), open(f'{runner.work_dir}/fill', 'wb', 0) as file:
                for size in (2**16, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
            runner.visualizer.add_scalars({'x' * 5000: 1.0})
            runner.logger.info('x' * 5000)


@HOOKS.register_module()
class KillInValidation(Hook):
    """Kills the training in the validation after an epoch, the first time that it comes there."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        done = Path(runner.work_dir, 'killed')
        if runner.epoch == self.epoch and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class SampleRecorder(Hook):
    """Writes the images of each step of each process into the work directory."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        names = [Path(sample.img_path).stem for sample in data_batch['data_samples']]
        with open(f'{runner.work_dir}/samples', 'a') as file:
            file.write(f'{runner.iter} {" ".join(names)}\n')


@HOOKS.register_module()
class Attack(Hook):
    """Ends one process from an iteration on, as the environment variable ATTACK says.

    It has four parts: a kind, the iteration, the rank of the process, and a delay in seconds. Kinds
    are the names of signals, 'validation', 'save', 'worker' and 'agent'; all but signals are
    SIGKILL.
    """

    priority = 'VERY_LOW'  # after the recorders

    def before_train(self, runner: Any) -> None:
        self.kind, iteration, rank, delay = os.environ.get('ATTACK', 'none 0 0 0').split()
        self.iteration, self.delay = int(iteration), float(delay)
        if int(rank) != runner.rank:
            self.kind = 'none'

    def _kill(self, pid: int, name: str = 'SIGKILL') -> None:
        print(f'attack: {name} to {pid}', flush=True)
        os.kill(pid, getattr(signal, name))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter < self.iteration:
            return
        if self.kind.startswith('SIG'):
            name, self.kind = self.kind, 'none'
            timer = threading.Timer(self.delay, self._kill, (os.getpid(), name))
            timer.daemon = True
            timer.start()
        elif self.kind == 'worker':
            # Again in later steps: one that has done its work is not missed.
            self._kill(multiprocessing.active_children()[-1].pid)
        elif self.kind == 'agent':
            self._kill(os.getppid())
            self.kind = 'none'

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if self.kind == 'validation' and runner.iter >= self.iteration and batch_idx:
            self._kill(os.getpid())

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        if self.kind == 'save' and runner.iter >= self.iteration:
            threading.Thread(target=self._kill_writer, args=(runner.work_dir,), daemon=True).start()
            os.replace = lambda *_: self._kill(os.getpid())  # at the latest

    def _kill_writer(self, folder: str) -> None:
        while not list(Path(folder).glob('*.tmp')):
            time.sleep(0)
        self._kill(os.getpid())
