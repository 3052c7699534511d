"""Contents of the work directory of a run: config, checkpoints, log and predictions."""

import glob
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
from .config import build_model, plain_config, read_config
from .errors import UserError
from .fileio import read_json
from .weights.hub import (
    MODEL_FILES,
    REPOSITORY,
    SCHEME,
    fetch_repository,
    published,
    resolve,
)
from .zoo import CONFIGS, config_file

TIME = re.compile(r'(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ')
TRAINED = re.compile(r'last_checkpoint|(epoch|iter)_\d+\.pth|best_.+\.pth')
PROGRAM = re.compile(r'^(import|from|def|class) ', re.MULTILINE)
PREDICTIONS = tuple(package.predictions for package in PACKAGES.values())

# --- Config and checkpoints -------------------------------------------------------------------


def config_in(folder: str | os.PathLike) -> Path:
    """The config in a work directory; the newest if there are several.

    Raises:
        UserError: The directory does not exist, or has no config.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'work directory {folder} does not exist: pass that of a training')
    scripts = sorted(filter(Path.is_file, folder.glob('*.py')), key=os.path.getmtime)
    # A run writes settings alone; tools/export.py may have left its program beside them.
    configs = [path for path in scripts if not PROGRAM.search(path.read_text(errors='replace'))]
    if not configs:
        raise UserError(f'{folder} has no config (*.py): pass the --work-dir of a training')
    *older, newest = configs
    if older:
        names = ', '.join(path.name for path in older)
        print_log(f'{folder} has several configs: using the newest, {newest.name}, not {names}')
    return newest


def find_model(
    model: str | os.PathLike, checkpoint: str | os.PathLike | None = None
) -> tuple[Config, str]:
    """The config of a model, and the file of its weights.

    Args:
        model: Name of a config of this package, a config file, the work directory of a run, or
            a published model, ``hub:OWNER/NAME`` or its folder, whose config is not executed.
        checkpoint: A file or ``gcvit://NAME``, which is downloaded. The default is the best
            checkpoint of a work directory, or the newest intact one without a best one; for the
            ImageNet classifiers of this package it is the published weights.

    Raises:
        UserError: The config or the weights do not exist or cannot be read.
    """
    if str(model).startswith(REPOSITORY):
        model = fetch_repository(str(model))
    config, weights = (Path(model, name) for name in MODEL_FILES)
    if weights.is_file() and config.is_file():
        cfg = plain_config(config.read_text(errors='replace'), config)
        return cfg, resolve(os.fspath(checkpoint or weights))
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
    """The best intact checkpoint of a run, or the newest if none is marked as best."""
    from .weights.files import verify_checkpoint  # imports torch, which takes seconds

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
    raise UserError(f'{folder} has no intact checkpoint: pass one{reasons}')


def _published_for(config: str) -> str:
    """The published weights of an ImageNet classifier of this package."""
    name = re.fullmatch('gcvit_(.+)_imagenet', Path(config).stem)
    if name and name[1] in published() and Path(config).resolve().parent == CONFIGS.resolve():
        return SCHEME + name[1]
    raise UserError(
        f'{config} needs a checkpoint: pass one, as only ImageNet classifiers such as '
        'gcvit_tiny_imagenet have published weights'
    )


def checkpoint_folder(cfg: Config) -> str:
    """The folder to which mmengine's ``CheckpointHook`` writes the checkpoints of a run."""
    hooks = cfg.get('default_hooks') or {}
    out_dir = (hooks.get('checkpoint') or {}).get('out_dir')
    if not out_dir or out_dir == cfg.work_dir:
        return cfg.work_dir
    return os.path.join(out_dir, os.path.basename(cfg.work_dir.rstrip('/')))


def check_untrained(cfg: Config) -> None:
    """Raise a ``UserError`` if a run has written checkpoints to the folder of a new one."""
    folder = Path(checkpoint_folder(cfg))
    names = (path.name for path in folder.glob('*') if TRAINED.fullmatch(path.name))
    if name := next(names, None):
        raise UserError(
            f'work directory {folder} has checkpoints of an earlier training ({name}): pass '
            '--resume to continue it, or choose another --work-dir'
        )


def find_resumable(
    folder: str | os.PathLike, since: str = '', cfg: Config | None = None
) -> tuple[str | None, list[str]]:
    """Find the checkpoint in a work directory from which a run resumes.

    That is the one that ``last_checkpoint`` names, or else the one with the most iterations; files
    that are damaged or of another model are skipped.

    Args:
        folder: The work directory, which may not exist.
        since: Ignore checkpoints of an earlier time, according to their metadata.
        cfg: The config of the training, to skip checkpoints of another model.

    Returns:
        The file or None, and a line for each skipped checkpoint.
    """
    from .training_state import check_training_state  # imports torch, which takes seconds
    from .weights.files import read_checkpoint

    named = _last_checkpoint(Path(folder))
    candidates, skipped = [], []
    for path in Path(folder).glob('*.pth'):
        try:
            content = read_checkpoint(path, lazy=True)
            if not isinstance(content, dict) or not {'optimizer', 'message_hub'} <= content.keys():
                continue  # weights only
            check_training_state(content)
        except UserError as error:
            skipped.append(_about(path, error))
            continue
        meta = content['meta']
        if (time := str(meta.get('time', ''))) >= since:
            candidates.append((path.name == named, meta['iter'], time, path))
    if named and not Path(folder, named).exists():
        skipped.append(f'{folder}/last_checkpoint names {named}, which does not exist')
    for *_, path in sorted(candidates, reverse=True):
        try:
            check_resumable(path, cfg)
        except UserError as error:
            skipped.append(str(error))
        else:
            return str(path), skipped
    return None, skipped


def _last_checkpoint(folder: Path) -> str:
    """The name in ``last_checkpoint``; '' if there is none."""
    try:
        return Path((folder / 'last_checkpoint').read_text(encoding='utf-8')).name[:255]
    except (OSError, ValueError):
        return ''


def check_resumable(path: str | os.PathLike, cfg: Config | None = None) -> None:
    """Check that a run can resume from a checkpoint, before anything is loaded.

    Args:
        path: The file.
        cfg: The config of the training, to compare the weights with its model.

    Raises:
        UserError: The file is missing or damaged, its state cannot be used (see
            ``check_training_state``), or it is of another model.
    """
    from .training_state import check_training_state
    from .weights.files import read_checkpoint

    try:
        content = read_checkpoint(path)
        check_training_state(content)
        if cfg is not None:
            _check_model(cfg, content['state_dict'])
    except UserError as error:
        raise UserError(_about(path, error)) from error


def _about(path: str | os.PathLike, error: UserError) -> str:
    message = str(error)
    return message if str(path) in message else f'checkpoint {path}: {message}'


def _check_model(cfg: Config, weights: dict) -> None:
    own = build_model(cfg, meta=True).state_dict()
    for name in sorted(own.keys() ^ weights.keys(), key=str):
        raise UserError(f'it is of another model: {name} is in one of the two only')
    for name, tensor in own.items():
        shape = list(getattr(weights[name], 'shape', ()))
        if shape != list(tensor.shape):
            raise UserError(f'it is of another model: {name} is {shape}, not {list(tensor.shape)}')


# --- Log and predictions ----------------------------------------------------------------------


@dataclass
class Run:
    """A run, with all its resumptions.

    Attributes:
        folder: The work directory.
        config_file: The newest config in the work directory.
        cfg: The content of ``config_file``.
        config_text: The config of the training as Python code.
        steps: A dict for each logged step, in order: losses, ``lr``, ``time`` in seconds,
            ``data_share``, ``memory`` in MB.
        validations: A dict for each validation: metrics, ``step`` as in the log (an epoch or an
            iteration) and ``at``, the last logged step before it.
        environment: Versions of packages, and the summary of the run in the log.
        started: Time when the training began; None without a log.
        seconds: Duration of the training, without pauses before resumptions.
        epoch, step: The end of the training according to the text of the log, which may come after
            the last logged step; 0 if it does not tell.
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
    epoch: int = 0
    step: int = 0

    @property
    def unit(self) -> str:
        """The unit of the ``step`` of a validation: 'epoch' or 'step'."""
        logger = (self.cfg.get('default_hooks') or {}).get('logger') or {}
        return 'epoch' if logger.get('log_metric_by_epoch', True) else 'step'


def read_run(folder: str | os.PathLike) -> Run:
    """Read a work directory.

    Raises:
        UserError: The directory does not exist, or has no config.
    """
    file = config_in(folder)
    run = Run(file.parent, file, read_config(file), file.read_text())
    _add_log(run)
    return run


def find_predictions(folder: Path) -> str | None:
    """The PREFIX of the newest predictions in a work directory; None if there are none."""
    predictions = [path for end in PREDICTIONS for path in folder.glob(f'*{end}')]
    if not predictions:
        return None
    newest = str(max(predictions, key=os.path.getmtime))
    return next(newest.removesuffix(end) for end in PREDICTIONS if newest.endswith(end))


def predicted_at(prefix: str) -> float:
    """The time of the newest file of predictions."""
    path = Path(prefix)
    return max(map(os.path.getmtime, path.parent.glob(f'{glob.escape(path.name)}.*')))


def read_metrics(prefix: str) -> dict[str, Any]:
    """The metrics that ``tools/test.py`` wrote beside the predictions; empty if it did not.

    Raises:
        UserError: The file is not JSON.
    """
    path = Path(f'{prefix}.metrics.json')
    return read_json(path) if path.is_file() else {}


@dataclass
class _Start:
    """The log of a run from its start or a resumption to the next one."""

    folder: Path
    steps: list[dict]
    validations: list[dict]

    def cut(self, first: int) -> None:
        """Remove the steps from ``first`` on, which a later resumption has repeated."""
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
            if start.steps:
                run.epoch, run.step = _end(text, start.steps[-1]['step'])
            run.environment |= dict(_environment(text))  # the last start overrides earlier ones
    if starts:
        config = starts[-1].folder / 'vis_data' / 'config.py'
        if config.is_file():
            run.config_text = config.read_text()


def _end(log: str, step: int) -> tuple[int, int]:
    """The epoch and the step at the end of a log, given the last step with a line of losses."""
    lines = re.findall(r'Epoch\(train\) *\[(\d+)\]\[ *(\d+)/(\d+)\]', log)
    whole = re.findall(r'Saving checkpoint at (\d+) epochs|Epoch\(val\) *\[(\d+)\]', log)
    saved = re.findall(r'Saving checkpoint at (\d+) iterations', log)
    if lines and whole:
        epoch, position, length = map(int, lines[-1])
        last = int(max(whole[-1]))
        return last, step + max((last - epoch + 1) * length - position, 0)
    return 0, int(saved[-1]) if saved else 0


def _entries(path: Path) -> Iterator[dict]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # a killed training may leave an incomplete line
            continue


def _split(entries: Iterator[dict]) -> tuple[list[dict], list[dict]]:
    """Split the entries of a log into training steps and validations."""
    steps: list[dict] = []
    validations = []
    for entry in entries:
        if 'iter' in entry:
            steps.append(entry)
        elif 'step' in entry:
            validations.append({**entry, 'at': steps[-1]['step'] if steps else 0})
    return steps, validations


def _environment(log: str) -> Iterator[tuple[str, str]]:
    """Yield the entries of the head of a log, and of its block 'This run:'."""
    head = re.search(r'System environment:\n(.*?)\n-{20}', log, re.DOTALL)
    block = re.search(r'This run:\n((?:    .*\n)+)', log)
    for text in (head, block):
        if text:
            yield from re.findall(r'^    (\w[^:\n]*): (.+)$', text[1], re.MULTILINE)
