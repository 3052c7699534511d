"""From a folder of labels to a trained, evaluated model."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mmengine.config import Config

from ..cli import locked
from ..errors import UserError
from ..fileio import atomic_text
from ..zoo import TOOLS
from .decisions import Decision, Decisions, batch_sizes, decide, epochs_for, rate_for
from .options import Options

SHOWN = (
    'model',
    'weights',
    'head',
    'tile',
    'size',
    'flips',
    'anchors',
    'rare',
    'batch',
    'lr',
    'epochs',
)


def fit(
    folder: str | os.PathLike, work_dir: str | os.PathLike | None = None, **options: object
) -> Path:
    """Train and evaluate a model on a folder of images and labels in any known format.

    Writes an ordinary config with all decisions beside the work directory, then runs the tools that
    browse, train, test and report. A second call resumes the training.

    Args:
        folder: The data, as labelling tools leave them.
        work_dir: The folder for everything that is written; default: ``work_dirs/FOLDER``.
        options: Fields of ``Options``, such as ``minutes=8``.

    Returns:
        The work directory.

    Raises:
        UserError: The data cannot be used, a value is wrong, or a tool fails.
    """
    chosen = Options(**options)  # type: ignore[arg-type]
    work, config = plan(folder, work_dir, chosen)
    _run(config, work, _gpus(chosen))
    return work


def plan(
    folder: str | os.PathLike, work_dir: str | os.PathLike | None, options: Options
) -> tuple[Path, Path]:
    """Write the config, unless an earlier call with these options has.

    Returns:
        The work directory, and the config beside it.

    Raises:
        UserError: The data cannot be used, or a value is wrong.
    """
    from .config_text import in_docstring

    options.check()
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder: pass one with images and labels')
    work = Path(work_dir or Path('work_dirs') / folder.resolve().name)
    config = work.with_name(f'{work.name}.py')
    command = options.command(folder, work)
    if not config.exists():
        with locked(work):
            _write_config(folder, work, config, command, options)
    elif f'``{in_docstring(command)}``' in config.read_text():
        print(f'{config} is there already: its decisions are used')
    else:
        raise UserError(
            f'{config} was not written by this command: remove it, choose another --work-dir, or '
            f'train it by gcvit-mm train {config}'
        )
    return work, config


def _gpus(options: Options) -> int:
    import torch

    there = torch.cuda.device_count()
    if options.gpus is not None and not 0 <= options.gpus <= there:
        raise UserError(f'--gpus {options.gpus}: this machine has {there}')
    return there if options.gpus is None else options.gpus


def _write_config(folder: Path, work: Path, config: Path, command: str, options: Options) -> None:
    from ..config import read_config
    from ..formats import bring_in
    from .config_text import config_text
    from .facts import find_facts, read_reports
    from .trial import DoesNotFitError, try_steps

    gpus = _gpus(options)
    read = partial(
        bring_in,
        folder,
        work / 'data',
        format=options.format,
        task=options.task,
        val=options.val,
        seed=options.seed,
    )
    data = read()
    facts = find_facts(data, read_reports(data), gpus)
    made = decide(facts, options)
    if made['tile'].value:
        print(f'cutting the images into tiles of {made["tile"].value} pixels ...', flush=True)
        data = read(tile=made['tile'].value)
        facts = find_facts(data, read_reports(data), gpus)
        made = decide(facts, options) | {'tile': made['tile']}
    _get_weights(made)
    trial = work / 'trial.py'
    try:
        for made['batch'] in batch_sizes(facts, options):
            made['lr'] = rate_for(facts, made, options)
            add_schedule(made, Decision(1, ''), 1)
            atomic_text(trial, config_text(data, facts, made, command))
            print(f'trying a batch of {made["batch"].value} images ...', flush=True)
            try:
                steps, step, validation = try_steps(read_config(trial), options.seed)
                break
            except DoesNotFitError:
                continue
        else:
            raise UserError('not one image fits into the memory: pass a smaller --size or --model')
    finally:
        trial.unlink(missing_ok=True)
    steps = max(steps // max(gpus, 1), 1)
    add_schedule(made, epochs_for(facts, steps, (step, validation), options), steps)
    text = config_text(data, facts, made, command)
    atomic_text(config, f'{text}randomness = dict(seed={options.seed})\n')
    print(f'\ndecisions, written to {config}:')
    for name in SHOWN:
        print(f'  {name:<8} {made[name].value!s:<12} {made[name].why}')


def _get_weights(made: Decisions) -> None:
    """Start from scratch if the published weights cannot be had, unless they were asked for."""
    from ..weights.hub import resolve

    if made['weights'].value == 'imagenet':
        try:
            resolve(f'gcvit://{made["model"].value}')
        except UserError as error:
            if made['weights'].why == 'as given':
                raise
            print(f'training from scratch: {error}')
            made['weights'] = Decision('scratch', 'the published weights could not be downloaded')


def add_schedule(made: Decisions, epochs: Decision, steps: int) -> None:
    """Add what follows from the number of epochs and the steps of one."""
    total = epochs.value * steps
    momentum = float(f'{min(max(20 / total, 2e-4), 0.1):.1g}')
    made['epochs'] = epochs
    made['warmup'] = Decision(min(max(total // 20, 1), 500), 'a twentieth of the training')
    made['ema'] = Decision(momentum, 'its memory is a twentieth of the training')
    made['patience'] = Decision(5, 'as many validations without improvement end the training')
    made['log'] = Decision(min(max(steps // 5, 1), 50), 'a few lines in an epoch')


def _run(config: Path, work: Path, gpus: int) -> None:
    """Browse, train, test and report."""
    from ..config import read_config
    from ..work_dir import best_checkpoint

    if not (work / 'browse' / 'index.html').is_file():
        _call('browse_dataset.py', config, '--out', work / 'browse')
    train = ('dist_train.py', config, gpus) if gpus > 1 else ('train.py', config)
    _call(*train, '--work-dir', work, '--resume')
    cfg = read_config(config)
    cfg.work_dir = str(work)
    best = best_checkpoint(cfg)
    _call('test.py', config, best, '--work-dir', work, '--out', work / 'validation')
    _call('report.py', work, '--predictions', work / 'validation')
    print(*_summary(cfg, work, best), sep='\n')


def _summary(cfg: Config, work: Path, best: str) -> Iterator[str]:
    """What came out, and what to do with it."""
    from ..config import evaluators_of
    from ..work_dir import read_metrics

    metric = cfg.default_hooks.checkpoint.save_best
    value = read_metrics(str(work / 'validation')).get(metric, float('nan'))
    epoch = re.search(r'epoch_(\d+)', best)
    yield f'\nbest: {metric} {value:.3f}{f" after epoch {epoch[1]}" if epoch else ""}, {best}'
    options = ''
    if metric.startswith('coco/'):
        from ..report.thresholds import best_threshold

        kind = 'segm' if 'segm' in metric else 'bbox'
        truth = Path(evaluators_of(cfg, 'test')[0].ann_file)
        score, f1 = best_threshold(truth, work / f'validation.{kind}.json')
        if f1:
            where = f'F1 {f1:.3f} on validation images'
            yield f'score threshold to use: {score:.2f} ({where})'
            options = f' --score {score:.2f}'
        else:
            yield 'no prediction for a validation image is correct: train longer'
    if tile := cfg.get('tile'):
        options += f' --tile {tile}'
    yield f'report: {work / "report.html"}, inputs of the training: {work / "browse/index.html"}'
    yield f'predict: gcvit-mm infer {shlex.quote(str(work))} IMAGES --out FOLDER{options}'
    yield f'in the browser: gcvit-mm app {shlex.quote(str(work))}'
    yield f'for other runtimes: gcvit-mm export {shlex.quote(str(work))} --out model.onnx'


def _call(tool: str, *arguments: object) -> None:
    """Run another tool, which prints its own messages."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f'{tool} failed, see above; the same command continues from there')
