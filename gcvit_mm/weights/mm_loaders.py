"""Checkpoint loaders for mmengine that do not execute code from files."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
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


# mmengine logs the names of loaders without their first ten letters, 'load_from_'.


def load_from_local(path: str, map_location: Device = None) -> dict:
    """Read a file; a bare state dict becomes the entry ``state_dict``, as mmengine expects."""
    path = os.path.expanduser(path)
    content = read_checkpoint(path, map_location)
    if isinstance(content, dict) and 'state_dict' in content:
        return content
    try:
        return {'state_dict': state_dict_of(content)}
    except UserError as error:
        raise UserError(f'checkpoint {path}: {error}') from error


def load_from_http(url: str, map_location: Device = None) -> dict:
    """Download a file to PyTorch's folder of checkpoints, unless it is there, and read it."""
    name = os.path.basename(urlsplit(url).path)
    digest = re.search(r'-([a-f0-9]{8,})\.', name)  # names of published files have it
    if not digest:  # another address may have a file of this name
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:16]}_{name}'
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    if is_main_process() and not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, path, digest.group(1) if digest else None)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f'checkpoint {url} cannot be downloaded: {error}') from error
    barrier()
    return load_from_local(path, map_location)


def load_from_torchvision(name: str, map_location: Device = None) -> dict:
    """Read weights of torchvision."""
    return load_from_http(_look_up(name, get_torchvision_models()), map_location)


def load_from_openmmlab(name: str, map_location: Device = None) -> dict:
    """Read weights of OpenMMLab."""
    return load_from_http(_look_up(name, get_external_models()), map_location)


def load_from_mmcls(name: str, map_location: Device = None) -> dict:
    """Read the backbone of a classifier of mmpretrain."""
    content = load_from_http(_look_up(name, get_mmcls_models()), map_location)
    prefix, state = 'backbone.', content['state_dict']
    own = {key[len(prefix) :]: x for key, x in state.items() if key.startswith(prefix)}
    return {'state_dict': own}


def _look_up(name: str, urls: dict[str, str]) -> str:
    scheme, _, model = name.partition('://')
    if model not in urls:
        raise UserError(f'checkpoint {name}: {scheme} has no {model}: check the name')
    return urls[model]


def _refuse(path: str, map_location: Device = None) -> dict:
    raise UserError(f'checkpoint {path}: this scheme is not supported: download the file')


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
    """Replace mmengine's loaders, which execute code from checkpoints, for the whole process."""
    for prefix in {*CheckpointLoader._schemes, *_LOADERS}:
        loader = _LOADERS.get(prefix, _refuse)
        CheckpointLoader.register_scheme(prefixes=prefix, loader=loader, force=True)


_lock = RLock()


@contextmanager
def safe_loaders() -> Iterator[None]:
    """Replace mmengine's loaders within a ``with`` block, and restore them after it."""
    with _lock:  # else one thread would restore them while another one loads
        schemes = CheckpointLoader._schemes.copy()  # registering changes it in place
        register_loaders()
        try:
            yield
        finally:
            CheckpointLoader._schemes = schemes
