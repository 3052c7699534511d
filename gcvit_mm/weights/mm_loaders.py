"""Loaders of checkpoints for mmengine that execute nothing."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner.checkpoint import (
    CheckpointLoader,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from ..errors import UserError
from .files import read_checkpoint, state_dict_of

Device = str | torch.device | None


# mmengine logs the names of loaders without the first ten letters, 'load_from_'.


def load_from_local(path: str, map_location: Device = None) -> dict:
    """Read a file; a bare state dict is wrapped, as mmengine's hooks expect."""
    path = os.path.expanduser(path)
    content = read_checkpoint(path, map_location)
    if isinstance(content, dict) and 'state_dict' in content:
        return content
    try:
        return {'state_dict': state_dict_of(content)}
    except UserError as error:
        raise UserError(f'checkpoint {path}: {error}') from error


def load_from_http(url: str, map_location: Device = None) -> dict:
    """Fetch a file once, into PyTorch's folder of checkpoints, and read it."""
    name = os.path.basename(urlsplit(url).path)
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    if is_main_process() and not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        digest = re.search(r'-([a-f0-9]{8,})\.', name)  # as published files carry it
        try:
            torch.hub.download_url_to_file(url, path, digest.group(1) if digest else None)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f'checkpoint {url} cannot be fetched: {error}') from error
    barrier()
    return load_from_local(path, map_location)


def load_from_torchvision(name: str, map_location: Device = None) -> dict:
    """Read weights of torchvision's."""
    return load_from_http(_look_up(name, get_torchvision_models()), map_location)


def load_from_openmmlab(name: str, map_location: Device = None) -> dict:
    """Read weights of OpenMMLab's."""
    return load_from_http(_look_up(name, get_external_models()), map_location)


def load_from_mmcls(name: str, map_location: Device = None) -> dict:
    """Read the backbone of one of mmpretrain's classifiers."""
    content = load_from_http(_look_up(name, get_mmcls_models()), map_location)
    prefix, state = 'backbone.', content['state_dict']
    own = {key[len(prefix) :]: x for key, x in state.items() if key.startswith(prefix)}
    return {'state_dict': own}


def _look_up(name: str, urls: dict[str, str]) -> str:
    scheme, _, model = name.partition('://')
    if model not in urls:
        raise UserError(f'checkpoint {name}: {scheme} has no {model}')
    return urls[model]


def _refuse(path: str, map_location: Device = None) -> dict:
    raise UserError(f'checkpoint {path}: files of this kind are not read; fetch it to a local file')


_LOADERS = {
    '': load_from_local,
    'http://': load_from_http,
    'https://': load_from_http,
    'torchvision://': load_from_torchvision,
    'modelzoo://': load_from_torchvision,
    'open-mmlab://': load_from_openmmlab,
    'openmmlab://': load_from_openmmlab,
    'mmcls://': load_from_mmcls,
}


def register_loaders() -> None:
    """Replace mmengine's loaders, which execute what a checkpoint says, for the whole process."""
    for prefix in {*CheckpointLoader._schemes, *_LOADERS}:
        loader = _LOADERS.get(prefix, _refuse)
        CheckpointLoader.register_scheme(prefixes=prefix, loader=loader, force=True)


@contextmanager
def safe_loaders() -> Iterator[None]:
    """Replace mmengine's loaders within a block; other code of the process has its own again."""
    schemes = CheckpointLoader._schemes.copy()  # it is changed in place
    register_loaders()
    try:
        yield
    finally:
        CheckpointLoader._schemes = schemes
