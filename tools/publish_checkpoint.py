"""Prepare a checkpoint of a run for publication, with a record of its origin.

The state of the optimizer and of the training is removed. ``DST.json`` has the sha256 of the file,
the origin of the weights, their metrics, and the config as text. If DST is a folder, it gets the
files of a model on the Hugging Face hub: weights, config, and a card with the record.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _package  # noqa: F401

import gcvit_mm
from gcvit_mm.choices import SUFFIXES
from gcvit_mm.cli import add_trust_argument, run
from gcvit_mm.compat.environment import ONEDL, OPENMMLAB
from gcvit_mm.compat.packages import PACKAGES
from gcvit_mm.errors import UserError, printable
from gcvit_mm.weights.hub import MODEL_FILES, check_path, endpoint, failures

if TYPE_CHECKING:
    from torch import Tensor

RUN = ('experiment_name', 'epoch', 'iter', 'seed', 'time', 'mmengine_version')
KEPT = (*RUN, 'cfg', 'dataset_meta')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', metavar='SRC', help='checkpoint of tools/train.py')
    parser.add_argument(
        'target',
        metavar='DST',
        help=f'the file to write: {", ".join(SUFFIXES)}; or a folder for the hub',
    )
    parser.add_argument(
        '--metrics',
        metavar='FILE',
        help='metrics of the checkpoint, PREFIX.metrics.json of tools/test.py; by default those of '
        'its validation, from the log of the training',
    )
    parser.add_argument(
        '--licence',
        default='other',
        help="licence of the weights for the card, by the hub's names, such as cc-by-nc-sa-4.0",
    )
    parser.add_argument(
        '--push', metavar='OWNER/NAME', help='also upload the folder DST to the Hugging Face hub'
    )
    parser.add_argument('--force', action='store_true', help='overwrite DST and its record')
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_path(args.source)
    from gcvit_mm.config import plain_config
    from gcvit_mm.fileio import atomic_text
    from gcvit_mm.weights.files import (
        check_target,
        ema_entry,
        read_checkpoint,
        state_dict_of,
        write_checkpoint,
    )
    from gcvit_mm.weights.names import shorten

    folder = None if args.target.endswith(SUFFIXES) else Path(args.target)
    if args.push and not folder:
        raise UserError('--push uploads a folder: pass one as DST')
    if folder:
        if folder.is_file():
            raise UserError(f'{folder} is a file: pass a folder, or a name with a suffix')
        folder.mkdir(parents=True, exist_ok=True)
        args.target = str(folder / MODEL_FILES[1])
    record_file = f'{args.target}.json'
    check_target(args.target, args.source, args.force)
    if os.path.exists(record_file) and not args.force:
        raise UserError(f'{record_file} exists: pass --force to overwrite it')
    source = Path(args.source)
    content = read_checkpoint(source)
    meta = training_meta(source, content)
    if folder:
        plain_config(meta.get('cfg') or '', source)
    state = state_dict_of(content)
    metrics, origin = read_metrics(args.metrics) if args.metrics else logged_metrics(source, meta)
    description = {
        'task': task_of(meta),
        'variant': variant_of(source, state),
        'weights': 'moving average (EMA)' if ema_entry(content) else 'as trained',
        'source': {'file': source.name, **{key: meta[key] for key in RUN if key in meta}},
        'metrics': metrics,
        'metrics_from': origin,
        'published_with': versions(),
        'hardware': hardware_of(source.parent),
        'classes': (meta.get('dataset_meta') or {}).get('classes'),
        'config': meta.get('cfg'),
    }
    write_checkpoint(args.target, state, meta)
    record = {**fingerprint(Path(args.target)), **description}
    atomic_text(record_file, json.dumps(record, indent=1, default=str) + '\n')
    if folder:
        atomic_text(folder / MODEL_FILES[0], meta.get('cfg') or '')
        atomic_text(folder / 'README.md', card(record, args.licence))
    removed = [name for name in content if name not in ('meta', 'state_dict')]
    print(f'removed: {printable(shorten(removed))}')
    print(f'weights: {len(state)} tensors, {record["weights"]}')
    print(f'metrics: {shown(metrics) or "none found, pass --metrics FILE to add them"}')
    print(f'written: {args.target}, {record["size"] / 1e6:.1f} MB, and {record_file}')
    print(f'sha256: {record["sha256"]}')
    if args.push:
        push(folder, args.push)


def card(record: Mapping[str, Any], licence: str) -> str:
    """The model card of the hub."""
    config = record['config'] or ''
    start = re.findall(r"(?:checkpoint|load_from)='([^']+)'", config)
    start += re.findall(r"^load_from = '([^']+)'", config, re.MULTILINE)
    data = sorted(set(re.findall(r"\bdata_root='([^']+)'", config)))
    kinds = {'detection': 'object-detection', 'segmentation': 'image-segmentation'}
    rows = [f'| {name} | {value:g} |' for name, value in record['metrics'].items()]
    metrics = '\n'.join(['| metric | value |', '|---|---|', *rows]) if rows else 'None recorded.'
    versions = ', '.join(f'{name} {number}' for name, number in record['published_with'].items())
    return f"""---
license: {licence}
library_name: gcvit_mm
pipeline_tag: {kinds.get(record['task'], 'image-classification')}
tags: [gcvit, {record['task']}]
---

# {record['variant']}, {record['task']}

Trained with [gcvit_mm](https://arxiv.org/abs/2206.09959). Use:
`Predictor('hub:OWNER/NAME')`, or `gcvit-mm infer FOLDER IMAGES`.

- Classes: {', '.join(record['classes'] or []) or 'not recorded'}
- Data: {', '.join(data) or 'not recorded'}; their licence: add it here.
- Weights that the training started from: {', '.join(sorted(set(start))) or 'none, from scratch'}
- Weights: {record['weights']}, after {record['source'].get('iter')} iterations
- sha256 of {record['file']}: `{record['sha256']}`
- Hardware of the training: {record['hardware'] or 'not recorded'}
- Versions: {versions}

## Metrics

{metrics}

From: {record['metrics_from'] or 'nowhere'}. Again: `gcvit-mm test config.py {record['file']}`.
"""


def push(folder: Path | None, name: str) -> None:
    """Upload the folder of a model."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise UserError('--push needs huggingface_hub: pip install huggingface_hub') from error
    api = HfApi(endpoint=endpoint())
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message='Publish the model')
    except (*failures(), HFValidationError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f'{folder} cannot be uploaded to {name} ({reason}): log in with hf auth '
            'login, and check the name'
        ) from error
    print(f'uploaded: {endpoint()}/{name}')


def training_meta(source: Path, content: Any) -> dict[str, Any]:
    """The metadata of a run that are published."""
    from gcvit_mm.weights.files import meta_of

    try:
        meta = meta_of(content)
    except UserError as error:
        raise UserError(f'checkpoint {source}: {error}') from error
    if 'epoch' not in meta:
        raise UserError(
            f'{source} is not a checkpoint of tools/train.py: convert other files by '
            'tools/convert_checkpoint.py'
        )
    return {key: plain(meta[key]) for key in KEPT if key in meta}


def plain(value: Any) -> Any:
    """Convert NumPy's types, which other programs refuse, to Python's."""
    import numpy as np

    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def task_of(meta: Mapping[str, Any]) -> str | None:
    # A config is a Python program: it is searched as text, and never run.
    scope = re.search(r"^default_scope = '(\w+)'", meta.get('cfg') or '', re.MULTILINE)
    return PACKAGES[scope[1]].task if scope and scope[1] in PACKAGES else None


def variant_of(source: Path, state: Mapping[str, Tensor]) -> str:
    from gcvit_mm.weights.names import convert_names, describe

    try:
        return describe(convert_names(state)[0])
    except UserError as error:
        raise UserError(f'checkpoint {source}: {error}') from error


def hardware_of(folder: Path) -> str | None:
    from gcvit_mm.work_dir import read_run

    with contextlib.suppress(UserError):  # the folder is no work directory
        return read_run(folder).environment.get('device')
    return None


def read_metrics(file: str) -> tuple[dict[str, float], str]:
    try:
        metrics = json.loads(Path(file).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'metrics {file} cannot be read as JSON: {error}') from error
    if not isinstance(metrics, dict) or not all(
        isinstance(v, int | float) for v in metrics.values()
    ):
        raise UserError(f'metrics {file} must be a JSON object of numbers, as by tools/test.py')
    return metrics, Path(file).name


def logged_metrics(source: Path, meta: Mapping[str, Any]) -> tuple[dict[str, float], str | None]:
    """The metrics of the validation after the epoch or iteration of a checkpoint, from the log.

    The name of the file tells which of the two it counts; a renamed file has no metrics.
    """
    named = re.search(r'(epoch|iter)_(\d+)\.pth$', source.name)
    if not named or meta.get(named[1]) != int(named[2]):
        return {}, None
    for log in sorted(source.parent.glob('*/vis_data/scalars.json'), reverse=True):
        entries = log_entries(log)
        trainings = [entry for entry in entries if 'iter' in entry]
        if any('epoch' in entry for entry in trainings) != (named[1] == 'epoch'):
            continue  # the log counts validations in the other unit
        for entry in reversed(entries):
            if 'iter' not in entry and entry.get('step') == meta[named[1]]:
                metrics = {k: v for k, v in entry.items() if k not in ('step', 'time', 'data_time')}
                return metrics, f'validation during training, {log.relative_to(source.parent)}'
    return {}, None


def log_entries(log: Path) -> list[dict[str, Any]]:
    entries = []
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):  # an interrupted run may end within a line
            entries.append(json.loads(line))
    return entries


def versions() -> dict[str, str]:
    installed = {'gcvit_mm': gcvit_mm.__version__}
    for name in ('torch', 'torchvision', *OPENMMLAB, *ONEDL):
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def fingerprint(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {
        'file': file.name,
        'sha256': hashlib.sha256(content).hexdigest(),
        'size': len(content),
    }


def shown(metrics: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {value:g}' for name, value in metrics.items())


if __name__ == '__main__':
    run(main)
