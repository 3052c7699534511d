"""Curves of a training in TensorBoard, Weights & Biases and MLflow: ``tools/train.py --track``.

mmengine has a backend for each of them. These here go on with their run when a training is resumed.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import MLflowVisBackend, TensorboardVisBackend, WandbVisBackend

from ..errors import UserError
from ..fileio import atomic_text

PROJECT = 'gcvit_mm'
"""What wandb calls a project, and MLflow an experiment, unless their own variables name another."""
TIMES = ('time', 'data_time')
PARAMS = (
    'model',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'train_dataloader',
    'auto_scale_lr',
    'randomness',
)
"""Sections of a config that MLflow has as parameters; all of it is in the run's config.py."""


class TrackHook(Hook):
    """Give a training's curves to other tools too; the names of their runs are kept to be resumed.

    It is none of the config's, which is kept with the checkpoints: testing them is not tracked.

    Args:
        names: Keys of ``TRACKERS``.
        resume: Whether the training goes on, and the runs with it.

    Raises:
        UserError: A tracker is not installed; before the training, also: it does not let us in.
    """

    def __init__(self, names: Sequence[str], resume: bool) -> None:
        self.names = list(dict.fromkeys(names))
        self.resume = resume
        for name in self.names:
            spec = find_spec(name)
            if spec is None or spec.origin is None:  # a folder of files that it wrote, perhaps
                raise UserError(f"--track {name} needs {name}: pip install 'gcvit_mm[track]'")

    def before_train(self, runner: Runner) -> None:
        """Begin the runs, or go on with them."""
        if not is_main_process():
            return
        file = Path(runner.work_dir, 'trackers.json')
        runs = json.loads(file.read_text()) if self.resume and file.is_file() else {}
        for name in self.names:
            shown_as = Path(runner.cfg.filename).stem
            tracker = TRACKERS[name](runner.work_dir, shown_as, runs.get(name), lambda: runner.iter)
            tracker.add_config(runner.cfg)
            runs[name] = tracker.run
            runner.visualizer._vis_backends[name] = tracker
        atomic_text(file, json.dumps(runs, indent=1) + '\n')


class _OverIterations:
    """Numbers over the iterations of the training, those of validations too.

    Attributes:
        iterations: Says how many there were.
    """

    iterations: Callable[[], int]

    def add_scalars(
        self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Record the numbers among some values."""
        numbers = {k: v for k, v in scalar_dict.items() if isinstance(v, int | float | np.number)}
        if 'iter' not in numbers:
            # Of a validation, which mmengine counts in epochs, and whose times are called alike.
            step = self.iterations()
            numbers = {f'val_{k}' if k in TIMES else k: v for k, v in numbers.items()}
        super().add_scalars(numbers, step)  # type: ignore[misc]


class TensorboardTracker(_OverIterations, TensorboardVisBackend):
    """Event files in ``tensorboard/RUN`` of the work folder.

    Args:
        work_dir: The work folder.
        name: Not used: the run is shown by the name of its folder.
        run: The run to go on with; None begins one, named by the time.
        iterations: Says where the training is. What the run has of later iterations when it is
            gone on with will be trained again, and is hidden.

    Attributes:
        run: The run.
    """

    def __init__(
        self, work_dir: str, name: str, run: str | None, iterations: Callable[[], int]
    ) -> None:
        self.run = run or time.strftime('%Y%m%d_%H%M%S')
        self.iterations = iterations
        super().__init__(os.path.join(work_dir, 'tensorboard', self.run))

    def _init_env(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._tensorboard = SummaryWriter(self._save_dir, purge_step=self.iterations() + 1)


class WandbTracker(_OverIterations, WandbVisBackend):
    """A run of Weights & Biases, whose files are in ``wandb`` of the work folder.

    Args:
        work_dir: The work folder.
        name: What the run is shown as.
        run: The run to go on with; None begins one.
        iterations: Says where the training is.

    Attributes:
        run: The run, once there is one.
    """

    def __init__(
        self, work_dir: str, name: str, run: str | None, iterations: Callable[[], int]
    ) -> None:
        self.run = run
        self.iterations = iterations
        project = os.environ.get('WANDB_PROJECT', PROJECT)
        # Its own count of steps goes up with every call. Curves are drawn over iterations, of which
        # a validation's numbers get the last that was logged.
        axis = [dict(name='*', step_metric='iter')]
        settings = dict(project=project, name=name, id=run, resume='allow')
        super().__init__(work_dir, init_kwargs=settings, define_metric_cfg=axis)

    def _init_env(self) -> None:
        import wandb

        try:
            super()._init_env()
        except wandb.errors.Error as error:
            raise UserError(
                f'--track wandb: {error} Or keep the run on this machine: WANDB_MODE=offline'
            ) from error
        self.run = self._wandb.run.id

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Record the config; mmengine's would record all Python files under the current folder."""
        # A resumed training has other values, that of the file to resume for one.
        self.experiment.config.update(config.to_dict(), allow_val_change=True)


class MLflowTracker(_OverIterations, MLflowVisBackend):
    """A run of MLflow, in the store of ``MLFLOW_TRACKING_URI`` or in ``mlruns`` by the work folder.

    Args:
        work_dir: The work folder.
        name: What the run is shown as.
        run: The run to go on with; None begins one.
        iterations: Says where the training is.

    Attributes:
        run: The run, once there is one.
    """

    def __init__(
        self, work_dir: str, name: str, run: str | None, iterations: Callable[[], int]
    ) -> None:
        super().__init__(work_dir, run_name=name)
        self.run = run
        self.is_new = run is None
        self.iterations = iterations

    def _init_env(self) -> None:
        own_store = not os.environ.get('MLFLOW_TRACKING_URI')
        if own_store:
            # It prefers data bases, for which mlflow-skinny, the part that writes, has no driver.
            os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')
        import mlflow

        self._mlflow = mlflow
        if own_store:
            mlflow.set_tracking_uri(Path(self._save_dir).absolute().with_name('mlruns').as_uri())
        try:
            if not os.environ.get('MLFLOW_EXPERIMENT_NAME'):
                mlflow.set_experiment(PROJECT)
            self.run = mlflow.start_run(self.run, run_name=self._run_name).info.run_id
        except mlflow.MlflowException as error:
            raise UserError(
                f'--track mlflow: {mlflow.get_tracking_uri()} takes no runs, or not the one of '
                f'this training (see MLFLOW_TRACKING_URI and trackers.json): {error}'
            ) from error

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Record the config as a file, and settings as parameters, which cannot be changed."""
        self.experiment.log_text(config.pretty_text, 'config.py')
        if self.is_new:
            sections = {key: config[key] for key in PARAMS if config.get(key) is not None}
            self.experiment.log_params(dict(_flat(Config(sections).to_dict())))

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Record an image, (H, W, 3) in RGB."""
        self.experiment.log_image(image, key=re.sub(r'[^\w-]', '_', name), step=step)

    def close(self) -> None:
        """End the run; mmengine's would copy all logs and predictions of the work folder first."""
        if hasattr(self, '_mlflow'):
            self._mlflow.end_run()


def _flat(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Settings by the path to each, in the letters that MLflow allows."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(x, dict) for x in value):
        items = list(enumerate(value))
    else:
        yield key, value
        return
    for name, inner in items:
        part = re.sub(r'[^\w -]', '_', str(name))
        yield from _flat(inner, f'{key}.{part}' if key else part)


TRACKERS: dict[str, Any] = {
    'tensorboard': TensorboardTracker,
    'wandb': WandbTracker,
    'mlflow': MLflowTracker,
}
