"""Reading of configs without importing torch, and building of the models that they describe."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


def read_config(config: str | os.PathLike, *, import_modules: bool = True) -> Config:
    """Read a config, which executes its code.

    Args:
        config: A file, or the name of a config of this package.
        import_modules: Import the ``custom_imports`` of the config, which takes seconds.

    Raises:
        UserError: The config cannot be read.
    """
    path = config_file(config)
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # a config is Python code and may raise any error
        reason = f'{type(error).__name__}: {error}'
        raise UserError(f'config {path} cannot be read: {reason}') from error
    cfg.setdefault('custom_hooks', [])
    if import_modules:
        import_custom_modules(cfg)
    return cfg


def import_custom_modules(cfg: Config) -> None:
    """Import the ``custom_imports`` of a config, which register their classes."""
    try:
        import_modules_from_strings(**cfg.get('custom_imports') or {'imports': None})
    except Exception as error:  # the modules may raise any error
        cause = error.__context__ or error  # mmengine's own error does not tell the cause
        reason = f'{type(cause).__name__}: {cause}'
        raise UserError(f'config {cfg.filename}: {error}: {reason}') from error


def package_of(cfg: Config) -> Package:
    """The package of the model of a config."""
    scope = cfg.get('default_scope')
    if scope not in PACKAGES or 'model' not in cfg:
        raise UserError(
            f'config {cfg.filename} has default_scope {scope}: it must have a model of '
            f'{", ".join(PACKAGES)}'
        )
    return PACKAGES[scope]


def task_of(cfg: Config) -> str:
    """The task of the model of a config: 'detection', 'segmentation' or 'classification'."""
    return package_of(cfg).task


_scope = RLock()  # mmengine has one current scope for all threads


@contextmanager
def default_scope(cfg: Config) -> Iterator[None]:
    """Look up names of a config in its package first, within a ``with`` block."""
    with _scope, DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        yield


def find_class(registry: Registry, kind: Any) -> Any:
    """The class of a ``type`` in a config, or None; to be called within ``default_scope``."""
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as own:
        return own.get(kind)


def model_config(cfg: Config) -> ConfigDict:
    """A copy of the model of a config, with the data preprocessor as mmengine's runner adds it."""
    settings = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    return settings


def build_model(cfg: Config, *, meta: bool = False) -> 'nn.Module':
    """Build the model of a config, which stays as it is; for ``meta`` on PyTorch's meta device."""
    with default_scope(cfg):
        try:
            return _build_on_meta(cfg) if meta else MODELS.build(model_config(cfg))
        except (UserError, NotImplementedError):
            raise
        except Exception as error:  # a config may use any class
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
    """The config of the test data set of a model, whose pipeline prepares images for inference."""
    for name in ('test_dataloader', 'val_dataloader'):
        for dataset in datasets_of(cfg.get(name)):
            if dataset.get('pipeline'):
                return dataset
    raise UserError(f'config {cfg.filename} has no test_dataloader.dataset.pipeline: set one')


def metainfo_of(cfg: Config, dataset: ConfigDict) -> dict[str, Any]:
    """The metainfo of a data set from its class and its config: class names, perhaps a palette."""
    with default_scope(cfg):
        known = getattr(find_class(DATASETS, dataset.type), 'METAINFO', {})
    given = {'classes': dataset.classes} if dataset.get('classes') else {}  # as in mmpretrain
    return {**known, **given, **(dataset.get('metainfo') or {})}


def datasets_of(loader: ConfigDict | None) -> list[ConfigDict]:
    """The configs of the data sets of a data loader, without wrappers."""
    if not loader:
        return []
    datasets, queue = [], [loader.get('dataset') if isinstance(loader, dict) else loader]
    while queue:
        dataset = queue.pop(0)
        if not isinstance(dataset, dict):
            raise UserError(f'a data loader has {dataset!r} as its dataset: give a dictionary')
        inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets', [])
        queue.extend(inner)
        if not inner:
            datasets.append(dataset)
    return datasets


def evaluators_of(cfg: Config, split: str) -> list[ConfigDict]:
    """The evaluators of 'val' or 'test' as a list; a config may have one, several or none."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    return list(evaluators) if isinstance(evaluators, list) else [evaluators]


def transforms_of(pipeline: Any, name: str) -> list[ConfigDict]:
    """The transforms of a type in a pipeline, at any depth."""
    return [step for _, step in dicts_of(pipeline) if step.get('type') == name]


def dicts_of(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """The dictionaries in a setting, at any depth, by keys such as 'model.roi_head.bbox_head.0'."""
    if isinstance(value, dict):
        yield key, value
    elif not isinstance(value, list | tuple):
        return
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from dicts_of(item, f'{key}.{name}' if key else str(name))
