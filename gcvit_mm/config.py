"""Reading of configs without importing torch, and building of the models that they describe."""

import ast
import copy
import os
import re
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


def plain_config(text: str, path: str | os.PathLike) -> Config:
    """Read the text of a dumped config of somebody else as data, without executing it.

    Raises:
        UserError: It is more than assignments of plain values, or names other objects than those
            that OpenMMLab's packages and this one register.
    """
    try:
        values = dict(map(_assigned, ast.parse(text).body))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(
            f'config {path} is no dumped config ({error}): a config with code is not read, pass '
            'that of a training that you trust as a file'
        ) from error
    modules = (values.get('custom_imports') or {}).get('imports') or []
    strange = [name for name in modules if not re.match(rf'{_OWN}\b', str(name))]
    for _, step in dicts_of(values):
        # mmengine would also import and call any function that is not registered.
        kind, scope = str(step.get('type', 'GCViT')), step.get('_scope_', 'mmengine')
        if not _REGISTERED.fullmatch(kind) or scope not in (*PACKAGES, 'mmengine'):
            strange.append(kind)
    if strange:
        raise UserError(f'config {path} needs {strange[0]}, which is no part of the packages')
    cfg = Config(values, cfg_text=text, filename=str(path))
    import_custom_modules(cfg)
    return cfg


_OWN = '(mm(cv|engine|det|seg|pretrain)|gcvit_mm)'
_REGISTERED = re.compile(rf'\w+|{_OWN}\.[A-Z]\w*')


def _assigned(statement: ast.stmt) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, _plain(value)
    raise ValueError(f'line {statement.lineno} is no assignment')


def _plain(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[] | [ast.Dict()] as given, keywords=pairs):
            own = _plain(given[0]) if given else {}
            return own | {str(pair.arg): _plain(pair.value) for pair in pairs}
        case ast.Dict(keys=keys, values=values):
            return {ast.literal_eval(k or ''): _plain(v) for k, v in zip(keys, values, strict=True)}
        case ast.List(elts=items):
            return [_plain(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_plain(item) for item in items)
    return ast.literal_eval(node)


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
