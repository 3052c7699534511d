"""The config of a run, with the options of the command line, and checks that its data exist."""

import argparse
import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from .config import datasets_of, evaluators_of, import_custom_modules, read_config
from .errors import UserError

RUNNER_SECTIONS = frozenset(
    """
    model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg
    auto_scale_lr optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks
    custom_hooks data_preprocessor load_from resume launcher env_cfg log_processor log_level
    visualizer default_scope randomness experiment_name
    """.split()  # noqa: SIM905 - a list literal would have 26 lines
)
"""Arguments of mmengine's runner, which options may set even if the config does not."""


def load_run_config(args: argparse.Namespace, loaders: tuple[str, ...]) -> Config:
    """Load the config of a run with the options of the command line, for ``Runner.from_cfg``.

    Args:
        args: Arguments of ``add_config_arguments`` and ``add_run_arguments`` of ``gcvit_mm.cli``.
        loaders: Keys of the data loaders that the run uses, such as 'train_dataloader'.
    """
    cfg = load_config(args, loaders)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def load_config(
    args: argparse.Namespace, loaders: tuple[str, ...] = (), *, import_modules: bool = True
) -> Config:
    """Load a config with the options of the command line, and check files of data loaders."""
    cfg = read_config(args.config, import_modules=False)
    _check_options(cfg, args.cfg_options)
    try:
        cfg.merge_from_dict(args.cfg_options)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f'--cfg-options does not fit the config: {error}') from error
    if loaders:
        check_places(cfg, loaders)
    if import_modules:  # takes seconds
        import_custom_modules(cfg)
    return cfg


def _check_options(cfg: Config, options: dict) -> None:
    sections = {*cfg, *RUNNER_SECTIONS}
    for key in options:
        first = key.split('.')[0]
        if first not in sections:
            near = difflib.get_close_matches(first, sections, n=1)
            hint = f'did you mean {near[0]}?' if near else f'choose one of {sorted(sections)}'
            raise UserError(f'--cfg-options {key}: the config has no section {first!r}; {hint}')


def check_places(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check that folders and files of data loaders exist, without importing data sets."""
    for loader, dataset in local_datasets(cfg, loaders):
        check_paths(loader, dataset)
    for loader in loaders:
        check_evaluator(cfg, loader.removesuffix('_dataloader'))


def local_datasets(cfg: Config, loaders: tuple[str, ...]) -> Iterator[tuple[str, ConfigDict]]:
    """The data sets of data loaders, without those in remote storage, which cannot be checked."""
    for loader in loaders:
        for dataset in datasets_of(cfg.get(loader)):
            if '://' not in (dataset.get('data_root') or ''):
                yield loader, dataset


def full_path(dataset: ConfigDict, path: str) -> str:
    return os.path.join(dataset.get('data_root') or '', path)


def check_paths(loader: str, dataset: ConfigDict) -> None:
    """Raise a ``UserError`` if a folder or file of a data set does not exist."""
    root = dataset.get('data_root')
    option = f'--cfg-options {loader}.dataset.data_root=FOLDER'
    if root and not os.path.isdir(root):
        raise UserError(
            f'data folder {root} ({loader}) does not exist: put the data there, or set its path by '
            f'{option}'
        )
    # mmpretrain's ImageNet uses the name of the split as that of the folder.
    split = dataset.get('split') if dataset.type == 'ImageNet' else None
    prefixes = dataset.get('data_prefix') or split or {}
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        if not os.path.isdir(path := full_path(dataset, prefix)):
            raise UserError(f'image folder {path} ({loader}) does not exist: check data_prefix')
    ann_file = dataset.get('ann_file')
    if ann_file and not os.path.exists(path := full_path(dataset, ann_file)):
        raise UserError(f'annotation file {path} ({loader}) does not exist: check ann_file')


def check_evaluator(cfg: Config, split: str) -> None:
    """Raise a ``UserError`` if the annotations of the evaluator of 'val' or 'test' are missing."""
    name = f'{split}_evaluator'
    for evaluator in evaluators_of(cfg, split):
        ann_file = evaluator.get('ann_file')
        if ann_file and '://' not in ann_file and not os.path.exists(ann_file):
            raise UserError(
                f'annotation file {ann_file} ({name}) does not exist: set its path by '
                f'--cfg-options {name}.ann_file=FILE'
            )
