"""What the work folder of a training holds: config, checkpoints, log, predictions."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from .compat.packages import PACKAGES
from .config import read_config
from .errors import UserError
from .weights.files import read_checkpoint, verify_checkpoint
from .weights.hub import SCHEME, published, resolve
from .zoo import CONFIGS, config_file

TIME = re.compile(r'(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ')
PREDICTIONS = tuple(package.predictions for package in PACKAGES.values())

# --- Config and checkpoints -------------------------------------------------------------------


def config_in(folder: str | os.PathLike) -> Path:
    """The config of a work folder: the newest, where runs of several have left theirs.

    Raises:
        UserError: The folder does not exist, or has none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'work folder {folder} does not exist: give the --work-dir of a training')
    configs = sorted(folder.glob('*.py'), key=os.path.getmtime)
    if not configs:
        raise UserError(f'{folder} is not the work folder of a training: it has no config (*.py)')
    *older, newest = configs
    if older:
        names = ', '.join(path.name for path in older)
        print_log(f'{folder} has several configs: the newest, {newest.name}, is taken, not {names}')
    return newest


def find_model(
    model: str | os.PathLike, checkpoint: str | os.PathLike | None = None
) -> tuple[Config, str]:
    """The config of a model, and the file that its weights are in.

    Args:
        model: A name of the zoo's, a config file, or the work folder of a training.
        checkpoint: A file or ``gcvit://NAME``, which is fetched. By default, of a work folder the
            best checkpoint, or else the newest whole one; of the zoo's classifiers of ImageNet
            the published weights.

    Raises:
        UserError: One of them cannot be found or read.
    """
    if os.path.isdir(model):
        cfg = read_config(config_in(model))
        cfg.work_dir = os.fspath(model)
        checkpoint = checkpoint or best_checkpoint(cfg)
    else:
        path = config_file(model)
        cfg = read_config(path)
        checkpoint = checkpoint or _published_for(path)
    return cfg, resolve(os.fspath(checkpoint))


def best_checkpoint(cfg: Config) -> str:
    """The best checkpoint of a training, or the newest."""
    folder = checkpoint_folder(cfg)
    damaged = []
    for path in sorted(Path(folder).glob('best_*.pth'), key=os.path.getmtime, reverse=True):
        try:
            verify_checkpoint(path)
        except UserError as error:
            damaged.append(str(error))
        else:
            return str(path)
    newest, skipped = find_resumable(folder)
    if newest:
        return newest
    reasons = ''.join(f'; {line}' for line in damaged + skipped)
    raise UserError(f'{folder} has no whole checkpoint: give one{reasons}')


def _published_for(config: str) -> str:
    """The published weights of one of the zoo's classifiers of ImageNet."""
    name = re.fullmatch('gcvit_(.+)_imagenet', Path(config).stem)
    if name and name[1] in published() and Path(config).resolve().parent == CONFIGS.resolve():
        return SCHEME + name[1]
    raise UserError(
        f'{config} needs a checkpoint: only the classifiers of ImageNet, gcvit_tiny_imagenet for '
        'example, have published weights'
    )


def checkpoint_folder(cfg: Config) -> str:
    """Where the training of a config has its checkpoints, as mmengine's ``CheckpointHook`` does."""
    hooks = cfg.get('default_hooks') or {}
    out_dir = (hooks.get('checkpoint') or {}).get('out_dir')
    if not out_dir or out_dir == cfg.work_dir:
        return cfg.work_dir
    return os.path.join(out_dir, os.path.basename(cfg.work_dir.rstrip('/')))


def find_resumable(folder: str | os.PathLike, since: str = '') -> tuple[str | None, list[str]]:
    """Find the newest checkpoint in a work folder that is whole and has the state of a training.

    Args:
        folder: The work folder; it need not exist.
        since: Only checkpoints of this time or later are looked at, as they state it.

    Returns:
        The file, None where there is none, and a line for each checkpoint that is skipped.
    """
    found, skipped = [], []
    for path in Path(folder).glob('*.pth'):
        try:
            content = read_checkpoint(path, lazy=True)
        except UserError as error:
            skipped.append(str(error))
            continue
        if isinstance(content, dict) and {'meta', 'optimizer', 'message_hub'} <= content.keys():
            # The time in the file, as copying may change the file's own.
            time, step = (
                content['meta'].get(key, none) for key, none in (('time', ''), ('iter', 0))
            )
            if time >= since:
                found.append((time, step, path))
    latest = Path(folder, 'last_checkpoint')
    if latest.is_file() and not Path(folder, latest.read_text()).exists():
        skipped.append(f'{latest} names {latest.read_text()}, which does not exist')
    for _, _, path in sorted(found, reverse=True):
        try:
            verify_checkpoint(path)
        except UserError as error:
            skipped.append(str(error))
        else:
            return str(path), skipped
    return None, skipped


# --- Log and predictions ----------------------------------------------------------------------


@dataclass
class Run:
    """A training, of all its starts.

    Attributes:
        folder: The work folder.
        config_file: The newest config in it.
        cfg: What that says.
        config_text: The config that the training had, as Python.
        steps: A dictionary for each line of the log, in the order of ``step``: losses, ``lr``,
            ``time`` in seconds, ``data_share``, ``memory`` in MB.
        validations: One for each validation: metrics, ``step`` as the log has it (an epoch or an
            iteration) and ``at``, the last step that was logged before it.
        environment: Versions, and what the log says of the run.
        started: When the training began; None where there is no log of it.
        seconds: How long it took, without the time between its starts.
    """

    folder: Path
    config_file: Path
    cfg: Config
    config_text: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    started: datetime | None = None
    seconds: float = 0.0

    @property
    def unit(self) -> str:
        """What the ``step`` of a validation counts: 'epoch' or 'step'."""
        logger = (self.cfg.get('default_hooks') or {}).get('logger') or {}
        return 'epoch' if logger.get('log_metric_by_epoch', True) else 'step'


def read_run(folder: str | os.PathLike) -> Run:
    """Read a work folder.

    Raises:
        UserError: It does not exist, or holds no config.
    """
    file = config_in(folder)
    run = Run(file.parent, file, read_config(file), file.read_text())
    _add_log(run)
    return run


def find_predictions(folder: Path) -> str | None:
    """The PREFIX of the newest predictions in a work folder, None where there are none."""
    found = [path for end in PREDICTIONS for path in folder.glob(f'*{end}')]
    if not found:
        return None
    newest = str(max(found, key=os.path.getmtime))
    return next(newest.removesuffix(end) for end in PREDICTIONS if newest.endswith(end))


def read_metrics(prefix: str) -> dict[str, Any]:
    """What ``tools/test.py`` wrote beside the predictions, nothing where that is not there.

    Raises:
        UserError: The file is not JSON.
    """
    path = Path(f'{prefix}.metrics.json')
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        UserError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as JSON: {error}') from error


@dataclass
class _Start:
    """What one start of a training logged."""

    folder: Path
    steps: list[dict]
    validations: list[dict]

    def cut(self, first: int) -> None:
        """Forget what a later start, from ``first`` on, did again."""
        self.steps = [entry for entry in self.steps if entry['step'] < first]
        self.validations = [entry for entry in self.validations if entry['at'] < first]


def _add_log(run: Run) -> None:
    starts: list[_Start] = []
    for path in sorted(run.folder.glob('*/vis_data/scalars.json')):
        start = _Start(path.parents[1], *_split(_entries(path)))
        if start.steps:
            for earlier in starts:
                earlier.cut(start.steps[0]['step'])
            starts = [*(earlier for earlier in starts if earlier.steps), start]
    for start in starts:
        run.steps += start.steps
        run.validations += start.validations
        log = start.folder / f'{start.folder.name}.log'
        if log.is_file():
            text = log.read_text(errors='replace')
            times = [datetime.strptime(t, '%Y/%m/%d %H:%M:%S') for t in TIME.findall(text)]
            if times:
                run.started = run.started or times[0]
                run.seconds += (times[-1] - times[0]).total_seconds()
            run.environment |= dict(_environment(text))  # of the last start, where they differ
    if starts:
        config = starts[-1].folder / 'vis_data' / 'config.py'
        if config.is_file():
            run.config_text = config.read_text()


def _entries(path: Path) -> Iterator[dict]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # a kill leaves half a line
            continue


def _split(entries: Iterator[dict]) -> tuple[list[dict], list[dict]]:
    """The lines of training steps, and those of validations."""
    steps: list[dict] = []
    validations = []
    for entry in entries:
        if 'iter' in entry:
            steps.append(entry)
        elif 'step' in entry:
            validations.append({**entry, 'at': steps[-1]['step'] if steps else 0})
    return steps, validations


def _environment(log: str) -> Iterator[tuple[str, str]]:
    """What the head of a log says, and its block 'This run:'."""
    head = re.search(r'System environment:\n(.*?)\n-{20}', log, re.DOTALL)
    block = re.search(r'This run:\n((?:    .*\n)+)', log)
    for text in (head, block):
        if text:
            yield from re.findall(r'^    (\w[^:\n]*): (.+)$', text[1], re.MULTILINE)
