"""What a config says, read without importing torch; and what it names, looked up and built."""

import copy
import os
from collections.abc import Iterator, Sequence
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


def transforms_of(pipeline: Any, name: str) -> list[ConfigDict]:
    """The transforms of a type, however deep they are nested in a pipeline."""
    if isinstance(pipeline, Sequence) and not isinstance(pipeline, str):
        return [step for item in pipeline for step in transforms_of(item, name)]
    if isinstance(pipeline, dict):
        own = [pipeline] if pipeline.get('type') == name else []
        return own + transforms_of(pipeline.get('transforms', []), name)
    return []
