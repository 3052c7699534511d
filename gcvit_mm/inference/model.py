"""Loads a model of any task with its weights and the names of its classes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch import nn

from ..config import build_model, metainfo_of, task_of, test_dataset
from ..drawing.palette import class_colors, class_names
from ..errors import UserError
from ..models import GCViT
from ..models.precision import use_tf32
from ..weights.convert import convert
from ..weights.files import meta_of, read_checkpoint, state_dict_of
from ..weights.load import mismatches


def load_model(cfg: Config, checkpoint: str, device: str | torch.device) -> tuple[nn.Module, dict]:
    """Build a model and load its weights, without executing code from the checkpoint.

    EMA weights have priority, as in ``tools/test.py``. A classifier also takes checkpoints of the
    official code and of timm. Returns the model in evaluation mode and the metainfo of its classes:
    ``classes``, their names, if they have any, and ``palette``, a colour (R, G, B) for each.
    """
    use_tf32()
    content = read_checkpoint(checkpoint)
    with _quietly():
        model = build_model(cfg)
        dataset = test_dataset(cfg)
    try:
        state = {k.removeprefix('module.'): v for k, v in state_dict_of(content).items()}
        if task_of(cfg) == 'classification' and mismatches(model, state):
            state = convert(state, 'classification').tensors
        saved = meta_of(content).get('dataset_meta') or {}
    except UserError as error:
        raise UserError(f'checkpoint {checkpoint}: {error}') from error
    mismatched = mismatches(model, state)
    if mismatched:
        raise UserError(
            f'checkpoint {checkpoint} does not fit the model: {len(mismatched)} of '
            f'{len(model.state_dict())} tensors are missing or have another shape '
            f'({", ".join(mismatched[:3])}, ...). Use the config of its training'
        )
    model.load_state_dict(state, strict=False)
    meta = {**metainfo_of(cfg, dataset), **saved}
    classes = class_names(meta)
    palette = class_colors(cfg, dataset, classes)
    return revert_sync_batchnorm(model).to(device).eval(), dict(classes=classes, palette=palette)


def channels_of(model: Any) -> int | None:
    """The number of channels that a model takes; None for other backbones than GC ViT."""
    backbone = getattr(model, 'backbone', None)
    return backbone.stem.conv.in_channels if isinstance(backbone, GCViT) else None


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what the mm packages print at import, and their warnings of their own defaults."""
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mm(cv|engine|det|seg|pretrain)')
        yield
