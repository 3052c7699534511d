"""What a config says, read without importing torch; and what it names, looked up and built."""

import argparse
import copy
import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, DefaultScope, Registry
from mmengine.utils import import_modules_from_strings

from .compat.packages import PACKAGES, Package
from .errors import UserError
from .zoo import config_file

if TYPE_CHECKING:
    from torch import nn

RUNNER_SECTIONS = frozenset(
    [
        'model',
        'work_dir',
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'train_cfg',
        'val_cfg',
        'test_cfg',
        'auto_scale_lr',
        'optim_wrapper',
        'param_scheduler',
        'val_evaluator',
        'test_evaluator',
        'default_hooks',
        'custom_hooks',
        'data_preprocessor',
        'load_from',
        'resume',
        'launcher',
        'env_cfg',
        'log_processor',
        'log_level',
        'visualizer',
        'default_scope',
        'randomness',
        'experiment_name',
    ]
)
"""What mmengine's runner takes, also where a config does not have it."""


def load_run_config(args: argparse.Namespace, loaders: tuple[str, ...]) -> Config:
    """The config that the command line asks for, ready for ``Runner.from_cfg``.

    Args:
        args: What ``add_config_arguments`` and ``add_run_arguments`` of ``gcvit_mm.cli`` add.
        loaders: The data loaders that the run uses: 'train_dataloader' and so on.

    Raises:
        UserError: The config cannot be read, an option names no section of it, or its data are not
            where it says.
    """
    cfg = load_config(args, loaders)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def load_config(
    args: argparse.Namespace, loaders: tuple[str, ...] = (), *, import_modules: bool = True
) -> Config:
    """The config that the command line asks for.

    Args:
        args: What ``gcvit_mm.cli.add_config_arguments`` adds.
        loaders: Data loaders whose files are to be there: 'train_dataloader' and so on.
        import_modules: Import its ``custom_imports``, which takes seconds.

    Raises:
        UserError: The config cannot be read, an option names no section of it, or its data are not
            where it says.
    """
    cfg = read_config(args.config, import_modules=False)
    _check_options(cfg, args.cfg_options)
    try:
        cfg.merge_from_dict(args.cfg_options)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f'--cfg-options does not fit the config: {error}') from error
    if loaders:
        check_places(cfg, loaders)
    if import_modules:
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


def read_config(config: str | os.PathLike, *, import_modules: bool = True) -> Config:
    """Read a config, which executes it.

    Args:
        config: A file, or a name of the zoo's.
        import_modules: Import its ``custom_imports``, which takes seconds.

    Raises:
        UserError: It cannot be read.
    """
    path = config_file(config)
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # a config is Python: it may raise anything
        reason = f'{type(error).__name__}: {error}'
        raise UserError(f'config {path} cannot be read: {reason}') from error
    cfg.setdefault('custom_hooks', [])
    if import_modules:
        import_custom_modules(cfg)
    return cfg


def import_custom_modules(cfg: Config) -> None:
    """Import what a config's ``custom_imports`` name, which registers it.

    Raises:
        UserError: A module cannot be imported.
    """
    try:
        import_modules_from_strings(**cfg.get('custom_imports') or {'imports': None})
    except Exception as error:  # the modules are anybody's code
        cause = error.__context__ or error  # mmengine does not pass on why
        reason = f'{type(cause).__name__}: {cause}'
        raise UserError(f'config {cfg.filename}: {error}: {reason}') from error


def package_of(cfg: Config) -> Package:
    """The package that the model of a config is of.

    Raises:
        UserError: It is none of ``PACKAGES``.
    """
    scope = cfg.get('default_scope')
    if scope not in PACKAGES or 'model' not in cfg:
        raise UserError(
            f'config {cfg.filename} is not of a model of {", ".join(PACKAGES)}: its default_scope '
            f'is {scope}'
        )
    return PACKAGES[scope]


def task_of(cfg: Config) -> str:
    """What the model of a config does: 'detection', 'segmentation' or 'classification'.

    Raises:
        UserError: It is none of these.
    """
    return package_of(cfg).task


_scope = RLock()  # mmengine has one current scope for all threads


@contextmanager
def default_scope(cfg: Config) -> Iterator[None]:
    """Let names in a config be looked up in its package first."""
    with _scope, DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        yield


def find_class(registry: Registry, kind: Any) -> Any:
    """The class that a ``type`` in a config stands for, within ``default_scope``.

    Args:
        registry: Where it is registered.
        kind: Its name, or the class itself.

    Returns:
        The class; None where the name stands for nothing.
    """
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as own:
        return own.get(kind)


def model_config(cfg: Config) -> ConfigDict:
    """A copy of the model of a config, with its pre-processor where mmengine's runner puts it."""
    settings = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    return settings


def build_model(cfg: Config, *, meta: bool = False) -> 'nn.Module':
    """Build the model of a config, which stays as it is.

    Args:
        cfg: The config.
        meta: Give a model without values, on PyTorch's meta device.

    Raises:
        UserError: It cannot be built.
    """
    with default_scope(cfg):
        try:
            return _build_on_meta(cfg) if meta else MODELS.build(model_config(cfg))
        except (UserError, NotImplementedError):
            raise
        except Exception as error:  # a config may name any class
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise UserError(
                f'the model of config {cfg.filename} cannot be built: {reason}'
            ) from error


def _build_on_meta(cfg: Config) -> 'nn.Module':
    import torch

    try:
        with torch.device('meta'):
            model = MODELS.build(model_config(cfg))
    except (NotImplementedError, RuntimeError):  # it looks at values that it makes
        model = MODELS.build(model_config(cfg))
    return model.to('meta')  # torch.Tensor(...) ignores the device above


def test_dataset(cfg: Config) -> ConfigDict:
    """The config of the data set that a model is tested on, whose pipeline prepares its images.

    Raises:
        UserError: There is none.
    """
    for name in ('test_dataloader', 'val_dataloader'):
        for dataset in datasets_of(cfg.get(name)):
            if dataset.get('pipeline'):
                return dataset
    raise UserError(f'config {cfg.filename} has no test_dataloader.dataset.pipeline')


def metainfo_of(cfg: Config, dataset: ConfigDict) -> dict[str, Any]:
    """What a data set's class and its config say of its classes: names, perhaps a palette."""
    with default_scope(cfg):
        known = getattr(find_class(DATASETS, dataset.type), 'METAINFO', {})
    given = {key: dataset[key] for key in ('classes',) if dataset.get(key)}  # mmpretrain's way
    return {**known, **given, **(dataset.get('metainfo') or {})}


def datasets_of(loader: ConfigDict | None) -> list[ConfigDict]:
    """The data sets of a data loader's config, wrappers taken off."""
    if not loader:
        return []
    found, queue = [], [loader.dataset]
    while queue:
        dataset = queue.pop(0)
        inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets', [])
        queue.extend(inner)
        if not inner:
            found.append(dataset)
    return found


def evaluators_of(cfg: Config, split: str) -> list[ConfigDict]:
    """The evaluators of 'val' or 'test', of which a config may have one, a list or none."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    return list(evaluators) if isinstance(evaluators, list) else [evaluators]


def check_places(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check that the folders and files of some data loaders are there; imports nothing of a config.

    Args:
        cfg: The config.
        loaders: 'train_dataloader' and so on; absent ones are skipped.

    Raises:
        UserError: A folder or file is missing.
    """
    for loader, dataset in local_datasets(cfg, loaders):
        check_paths(loader, dataset)
    for loader in loaders:
        check_evaluator(cfg, loader.removesuffix('_dataloader'))


def local_datasets(cfg: Config, loaders: tuple[str, ...]) -> Iterator[tuple[str, ConfigDict]]:
    """The data sets of loaders, without those of remote stores, whose own clients report."""
    for loader in loaders:
        for dataset in datasets_of(cfg.get(loader)):
            if '://' not in (dataset.get('data_root') or ''):
                yield loader, dataset


def full_path(dataset: ConfigDict, path: str) -> str:
    return os.path.join(dataset.get('data_root') or '', path)


def check_paths(loader: str, dataset: ConfigDict) -> None:
    """Raise ``UserError`` where a folder or file that a data set's config names is not there."""
    root = dataset.get('data_root')
    option = f'--cfg-options {loader}.dataset.data_root=FOLDER'
    if root and not os.path.isdir(root):
        raise UserError(
            f'data folder {root} ({loader}) does not exist: put the data there, or name its place '
            f'by {option}'
        )
    # mmpretrain's ImageNet takes the name of the split for that of the folder.
    split = dataset.get('split') if dataset.type == 'ImageNet' else None
    prefixes = dataset.get('data_prefix') or split or {}
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        if not os.path.isdir(full_path(dataset, prefix)):
            raise UserError(f'image folder {full_path(dataset, prefix)} ({loader}) does not exist')
    ann_file = dataset.get('ann_file')
    if ann_file and not os.path.exists(full_path(dataset, ann_file)):
        raise UserError(f'annotation file {full_path(dataset, ann_file)} ({loader}) does not exist')


def check_evaluator(cfg: Config, split: str) -> None:
    """Raise ``UserError`` where the annotations of the evaluator of 'val' or 'test' are missing."""
    name = f'{split}_evaluator'
    for evaluator in evaluators_of(cfg, split):
        ann_file = evaluator.get('ann_file')
        if ann_file and '://' not in ann_file and not os.path.exists(ann_file):
            raise UserError(
                f'annotation file {ann_file} ({name}) does not exist: name its place by '
                f'--cfg-options {name}.ann_file=FILE'
            )


def transforms_of(pipeline: Any, name: str) -> list[ConfigDict]:
    """The transforms of a type, however deep they are nested in a pipeline."""
    if isinstance(pipeline, Sequence) and not isinstance(pipeline, str):
        return [step for item in pipeline for step in transforms_of(item, name)]
    if isinstance(pipeline, dict):
        own = [pipeline] if pipeline.get('type') == name else []
        return own + transforms_of(pipeline.get('transforms', []), name)
    return []
