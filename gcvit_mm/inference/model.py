"""A model of any task with its weights, ready to predict, and what its classes are called."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch import nn

from ..config import build_model, metainfo_of, task_of, test_dataset
from ..drawing.palette import class_colors
from ..errors import UserError
from ..weights.convert import convert
from ..weights.files import read_checkpoint, state_dict_of
from ..weights.load import mismatches


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
    with _quietly():
        model = build_model(cfg)
        dataset = test_dataset(cfg)
    try:
        state = {k.removeprefix('module.'): v for k, v in state_dict_of(content).items()}
        if task_of(cfg) == 'classification' and mismatches(model, state):
            state = convert(state, 'classification').tensors
    except UserError as error:
        raise UserError(f'checkpoint {checkpoint}: {error}') from error
    unfit = mismatches(model, state)
    if unfit:
        raise UserError(
            f'checkpoint {checkpoint} does not fit the model: {len(unfit)} of '
            f'{len(model.state_dict())} tensors are missing or of another shape '
            f'({", ".join(unfit[:3])}, ...). Use the config it was trained with'
        )
    model.load_state_dict(state, strict=False)
    saved = content.get('meta') if isinstance(content, Mapping) else None
    meta = {**metainfo_of(cfg, dataset), **((saved or {}).get('dataset_meta') or {})}
    classes = [str(name) for name in meta.get('classes') or ()]
    palette = class_colors(cfg, dataset, classes)
    return revert_sync_batchnorm(model).to(device).eval(), dict(classes=classes, palette=palette)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the packages print at import, and warn of their own defaults."""
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mm(cv|engine|det|seg|pretrain)')
        yield
