"""A model of any task with its weights, ready to predict, and what its classes are called."""

import colorsys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from threading import RLock
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope, Registry
from torch import Tensor, nn

from ..checkpoint import read_checkpoint, state_dict_of
from ..config import leaf_datasets, model_of
from ..conversion import convert
from ..errors import UserError

TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}
_scope = RLock()  # mmengine has one current scope for all threads


@contextmanager
def package_of(cfg: Config) -> Iterator[None]:
    """Let the names in a config be looked up in its package first."""
    with _scope, DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield


def look_up(registry: Registry, name: str) -> Any:
    """The class of a name, from within ``package_of``."""
    with registry.switch_scope_and_registry(None) as own:
        return own.get(name)


def task_of(cfg: Config) -> str:
    """What the model of a config does: 'detection', 'segmentation' or 'classification'.

    Raises:
        UserError: It is none of these.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS or 'model' not in cfg:
        raise UserError(
            f'config {cfg.filename} is not of a model of mmdet, mmseg or mmpretrain: its '
            f'default_scope is {scope}'
        )
    return TASKS[scope]


def test_dataset(cfg: Config) -> ConfigDict:
    """The config of the data set that a model is tested on, whose pipeline prepares its images.

    Raises:
        UserError: There is none.
    """
    for name in ('test_dataloader', 'val_dataloader'):
        for dataset in leaf_datasets(cfg.get(name)):
            if dataset.get('pipeline'):
                return dataset
    raise UserError(f'config {cfg.filename} has no test_dataloader.dataset.pipeline')


def load_model(cfg: Config, checkpoint: str, device: str | torch.device) -> tuple[nn.Module, dict]:
    """Build a model and load its weights; nothing that the file holds is executed.

    Of a training with a moving average (EMA) that average is taken, as ``tools/test.py`` does. A
    classifier also takes official files, and timm's.

    Args:
        cfg: The config.
        checkpoint: The file.
        device: Where the model is to be.

    Returns:
        The model, in evaluation mode, and what is known of its classes: ``classes`` are their
        names, if they have any, and ``palette`` a colour (R, G, B) for each.

    Raises:
        UserError: The file cannot be read, or does not fit the model.
    """
    content = read_checkpoint(checkpoint)
    with package_of(cfg), _quietly():
        model = MODELS.build(model_of(cfg))
        dataset = test_dataset(cfg)
        known = getattr(look_up(DATASETS, dataset.type), 'METAINFO', {})
    try:
        state = {k.removeprefix('module.'): v for k, v in state_dict_of(content).items()}
        if task_of(cfg) == 'classification' and _unfit(model, state):
            state = convert(state, 'classification').tensors
    except UserError as error:
        raise UserError(f'checkpoint {checkpoint}: {error}') from error
    unfit = _unfit(model, state)
    if unfit:
        raise UserError(
            f'checkpoint {checkpoint} does not fit the model: {len(unfit)} of '
            f'{len(model.state_dict())} tensors are missing or of another shape '
            f'({", ".join(unfit[:3])}, ...). Use the config it was trained with'
        )
    model.load_state_dict(state, strict=False)
    saved = content.get('meta') if isinstance(content, Mapping) else None
    meta = {
        **known,
        **{key: dataset[key] for key in ('classes',) if dataset.get(key)},  # mmpretrain's way
        **(dataset.get('metainfo') or {}),
        **((saved or {}).get('dataset_meta') or {}),
    }
    return revert_sync_batchnorm(model).to(device).eval(), _with_colors(meta, known)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the packages print at import, and warn of their own defaults."""
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mm(cv|engine|det|seg|pretrain)')
        yield


def _unfit(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Names of a model's tensors that are missing, or of another shape."""
    return [
        name
        for name, own in model.state_dict().items()
        if 'num_batches_tracked' not in name
        and (name not in state or state[name].shape != own.shape)
    ]


def _with_colors(meta: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, list]:
    classes = [str(name) for name in meta.get('classes') or ()]
    palette = meta.get('palette') or ()
    # A data set with classes of its own inherits the first colours of 80, which look alike.
    inherited = palette == known.get('palette') and classes != list(known.get('classes') or ())
    if isinstance(palette, str) or len(palette) < len(classes) or inherited:
        palette = [_color(label) for label in range(len(classes))]
    return dict(classes=classes, palette=[tuple(map(int, rgb)) for rgb in palette[: len(classes)]])


def _color(label: int) -> tuple[int, ...]:
    """A colour of a class; the golden ratio keeps those of neighbours apart."""
    rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65 + 0.35 * (label % 2), 1)
    return tuple(round(255 * part) for part in rgb)
