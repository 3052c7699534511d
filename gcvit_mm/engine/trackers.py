"""Tracking of a run in TensorBoard, Weights & Biases and MLflow: ``tools/train.py --track``.

These are mmengine's backends, but a run that is resumed also resumes its runs in the trackers.
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
"""Default project of wandb and experiment of MLflow; their environment variables override it."""
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
"""Sections of the config to log as parameters in MLflow; config.py has the whole config."""


class TrackHook(Hook):
    """Adds trackers to the visualizer, and writes their run IDs to ``trackers.json`` for resuming.

    Tests of a checkpoint use the config of its training, but are not tracked: the hook is therefore
    registered with the runner, and is not in the config.

    Raises:
        UserError: A tracker is not installed, or refuses access before the training.
    """

    def __init__(self, names: Sequence[str], resume: bool) -> None:
        self.names = list(dict.fromkeys(names))
        self.resume = resume
        for name in self.names:
            spec = find_spec(name)
            if spec is None or spec.origin is None:  # no origin: a folder of results, perhaps
                raise UserError(f"--track {name} needs {name}: pip install 'gcvit_mm[track]'")

    def before_train(self, runner: Runner) -> None:
        """Start or resume the runs of the trackers."""
        if not is_main_process():
            return
        file = Path(runner.work_dir, 'trackers.json')
        runs = json.loads(file.read_text()) if self.resume and file.is_file() else {}
        for name in self.names:
            title = Path(runner.cfg.filename).stem
            tracker = TRACKERS[name](runner.work_dir, title, runs.get(name), lambda: runner.iter)
            tracker.add_config(runner.cfg)
            runs[name] = tracker.run
            runner.visualizer._vis_backends[name] = tracker
        atomic_text(file, json.dumps(runs, indent=1) + '\n')


class _OverIterations:
    """Logs all scalars over the iterations of the training, including those of validations."""

    iterations: Callable[[], int]  # returns the current iteration

    def add_scalars(
        self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Log the numbers in ``scalar_dict``."""
        numbers = {k: v for k, v in scalar_dict.items() if isinstance(v, int | float | np.number)}
        if 'iter' not in numbers:
            # mmengine counts validations in epochs, and names their times as those of training.
            step = self.iterations()
            numbers = {f'val_{k}' if k in TIMES else k: v for k, v in numbers.items()}
        super().add_scalars(numbers, step)  # type: ignore[misc]


class TensorboardTracker(_OverIterations, TensorboardVisBackend):
    """Writes event files to ``tensorboard/RUN`` in the work directory.

    Iterations of a resumed run that are trained again are hidden.
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
    """Logs to a run of Weights & Biases, with files in ``wandb`` in the work directory."""

    def __init__(
        self, work_dir: str, name: str, run: str | None, iterations: Callable[[], int]
    ) -> None:
        self.run = run
        self.iterations = iterations
        project = os.environ.get('WANDB_PROJECT', PROJECT)
        # wandb counts a step for each call. Curves are drawn over iterations instead; scalars of a
        # validation get the last logged iteration.
        axis = [dict(name='*', step_metric='iter')]
        settings = dict(project=project, name=name, id=run, resume='allow')
        super().__init__(work_dir, init_kwargs=settings, define_metric_cfg=axis)

    def _init_env(self) -> None:
        import wandb

        try:
            super()._init_env()
        except wandb.errors.Error as error:
            raise UserError(
                f'--track wandb: {error} Or set WANDB_MODE=offline to log on this machine only'
            ) from error
        self.run = self._wandb.run.id

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Log the config, but not all Python files in the current directory as mmengine does."""
        # Values such as the checkpoint to resume change in a resumed training.
        self.experiment.config.update(config.to_dict(), allow_val_change=True)


class MLflowTracker(_OverIterations, MLflowVisBackend):
    """Logs to a run of MLflow, at ``MLFLOW_TRACKING_URI`` or in the folder ``mlruns``."""

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
            # MLflow prefers a database, for which mlflow-skinny has no driver.
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
                f'--track mlflow: {mlflow.get_tracking_uri()} refuses the run of this training '
                f'(check MLFLOW_TRACKING_URI and trackers.json): {error}'
            ) from error

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Log the config as a file, and settings as parameters of new runs: they are immutable."""
        self.experiment.log_text(config.pretty_text, 'config.py')
        if self.is_new:
            sections = {key: config[key] for key in PARAMS if config.get(key) is not None}
            self.experiment.log_params(dict(_flat(Config(sections).to_dict())))

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Log an RGB image of shape (H, W, 3)."""
        self.experiment.log_image(image, key=re.sub(r'[^\w-]', '_', name), step=step)

    def close(self) -> None:
        """End the run, without uploading the logs and predictions of the work directory."""
        if hasattr(self, '_mlflow'):
            self._mlflow.end_run()


def _flat(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Yield each setting with its path as key, in the characters that MLflow allows."""
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
