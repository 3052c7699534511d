"""Download of published weights by name, such as ``gcvit://tiny``, with verification."""

import difflib
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..zoo import ROOT

SCHEME = 'gcvit://'
REPOSITORY = 'hub:'
MODEL_FILES = ('config.py', 'model.safetensors')
"""Files of a published model, in a folder or on the hub, beside its card."""
HUB = 'https://huggingface.co'
MANIFEST = ROOT / 'checkpoints' / 'manifest.yml'


@dataclass(frozen=True)
class Weights:
    """A published file of weights, as listed in ``checkpoints/manifest.yml``."""

    name: str  # the name after ``gcvit://``
    variant: str  # the ``arch`` of ``GCViT``
    resolution: int  # size of the training images in pixels
    windows: list[int]  # window size of each stage
    url: str  # address of the file
    licence: str  # licence of the weights
    top1: float | str = '-'  # published ImageNet-1k accuracy in percent
    size_mb: float = 0  # size of the file in 10^6 bytes; 0 if it is not published
    tensors_mb: int = 0  # size of the tensors, used if ``size_mb`` is 0
    # The SHA-256 of the file or its first digits; if empty, that of the hub is used.
    sha256: str = ''
    member: str = ''  # name of the file, if ``url`` is the page of files that need an account

    @property
    def file(self) -> str:
        """Name of the file, in its address and on the disk."""
        return self.member or self.url.rsplit('/', 1)[1]

    @property
    def size(self) -> str:
        """Size of the download for printing."""
        return f'{self.size_mb:.0f} MB' if self.size_mb else f'~{self.tensors_mb} MB'


def published() -> dict[str, Weights]:
    """All published weights by name."""
    from mmengine.fileio import load

    manifest = load(MANIFEST)
    return {
        name: Weights(name, **values)
        for name, values in manifest.items()
        if not name.startswith('.')  # values that entries share
    }


def find(name: str) -> Weights:
    """Look up published weights by name, with or without ``gcvit://``."""
    name = name.removeprefix(SCHEME)
    known = published()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        raise UserError(f'weights {SCHEME}{name} are unknown: choose from {", ".join(known)}{hint}')
    return known[name]


def default_folder() -> Path:
    """The folder of weights: ``GCVIT_MM_CHECKPOINTS``, or ``checkpoints`` in the current folder."""
    folder = os.environ.get('GCVIT_MM_CHECKPOINTS') or 'checkpoints'
    return Path(folder).expanduser().absolute()


def check_path(checkpoint: str | os.PathLike) -> None:
    """Raise a ``UserError`` if a checkpoint is a path to a file that does not exist."""
    path = os.fspath(checkpoint)
    if '://' not in path and not os.path.isfile(path):
        raise UserError(f'checkpoint {path} does not exist: check the path')


def resolve(checkpoint: str) -> str:
    """Convert ``gcvit://NAME`` to the path of a file, which is downloaded if necessary.

    Any other string is returned unchanged.
    """
    if not checkpoint.startswith(SCHEME):
        return checkpoint
    return str(fetch(find(checkpoint), default_folder()))


def fetch_repository(name: str) -> Path:
    """Download a published model ``hub:OWNER/NAME`` of the Hugging Face hub, and return its folder.

    Raises:
        UserError: It cannot be downloaded, or has other files than ``tools/publish_checkpoint.py``
            writes.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise UserError(f'{name} needs huggingface_hub: pip install huggingface_hub') from error
    try:
        paths = [
            hf_hub_download(name.removeprefix(REPOSITORY), file, endpoint=endpoint())
            for file in MODEL_FILES
        ]
    except (*failures(), HFValidationError) as error:
        raise UserError(
            f'{name} cannot be downloaded ({_reason(error)}): check the name, it must be '
            f'{REPOSITORY}OWNER/NAME of a model with {" and ".join(MODEL_FILES)}'
        ) from error
    return Path(paths[0]).parent


def endpoint() -> str:
    """The address of the hub, or of its mirror."""
    return (os.environ.get('HF_ENDPOINT') or HUB).rstrip('/')


def fetch(weights: Weights, folder: Path) -> Path:
    """Download a file to a folder, unless a file of its name is there, which is not verified.

    Processes that need a file at the same time download it once. An interrupted download is kept as
    ``*.part`` beside the file, and resumed by the next attempt.
    """
    path = folder / weights.file
    if path.is_file():
        return path
    if weights.member:
        raise UserError(
            f'{weights.file} needs an account at its publisher: download it from {weights.url} '
            f'(licence {weights.licence}) to {path} yourself'
        )
    url = _url(weights)
    by_hand = f'download {url} to {path} yourself'
    try:
        from huggingface_hub.utils import WeakFileLock
    except ImportError as error:
        raise UserError(
            f'downloading {weights.file} needs huggingface_hub: pip install huggingface_hub, or '
            + by_hand
        ) from error
    lock = path.with_name(f'{path.name}.lock')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            try:
                if not path.is_file():  # unless another process has downloaded it
                    _download(weights, url, path)
            finally:
                lock.unlink(missing_ok=True)
    except failures() as error:
        raise UserError(
            f'{weights.file} cannot be downloaded ({_reason(error)}): try again, or {by_hand}'
        ) from error
    return path


def failures() -> tuple[Any, ...]:
    """The errors of requests to the hub."""
    from huggingface_hub.errors import HfHubHTTPError

    # Versions of huggingface_hub use different HTTP libraries, and raise their errors.
    return OSError, *HfHubHTTPError.__bases__


def _url(weights: Weights) -> str:
    # huggingface_hub uses this variable for mirrors.
    return weights.url.replace(HUB, endpoint())


def _reason(error: BaseException) -> str:
    if status := _status(error):
        return f'HTTP status {status}'
    return (str(error) or type(error).__name__).splitlines()[0]


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, 'response', None), 'status_code', None)


def _download(weights: Weights, url: str, path: Path) -> None:
    token = None if weights.url.startswith(HUB) else False  # send the user's token to the hub only
    size, sha256 = _remote_file(weights, url, token)
    # The name has the hash, so the part of another version is not resumed.
    part = path.with_name(f'{path.name}.{sha256[:8]}.part')
    _check_space(size or int((weights.size_mb or weights.tensors_mb) * 10**6), part)
    print(f'{weights.file}: {weights.size}, licence {weights.licence}, from {url}', flush=True)
    _complete(part, url, size, token, weights.file)
    actual = _sha256(part)
    if not actual.startswith(sha256):
        part.unlink()
        raise OSError(f'the downloaded file has the sha256 {actual} instead of {sha256}')
    os.replace(part, path)


def _remote_file(weights: Weights, url: str, token: bool | None) -> tuple[int | None, str]:
    """Ask the server for the size and the hash of a file."""
    from huggingface_hub import get_hf_file_metadata

    remote = get_hf_file_metadata(url, token=token)
    is_hash = re.fullmatch('[0-9a-f]{64}', remote.etag or '')
    sha256 = remote.etag if remote.etag and is_hash else weights.sha256
    if not sha256:
        raise OSError('the answer has no sha256, it may come from a login page')
    if not sha256.startswith(weights.sha256):
        raise OSError(f'the file on the server has changed, its sha256 is {sha256}')
    return remote.size or None, sha256  # some versions return 0, the size of the redirection


def _check_space(size: int, part: Path) -> None:
    missing = size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if free < missing:
        raise OSError(f'{missing >> 20} MiB are needed, the disk has {free >> 20} MiB free')


def _complete(part: Path, url: str, size: int | None, token: bool | None, label: str) -> None:
    """Download the missing rest of a file; ``label`` is the name at the progress bar."""
    # hf_hub_download starts from the beginning in every process, and verifies no hash.
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=token)
    with part.open('ab') as file:
        while True:
            have = file.tell()
            try:
                return http_get(
                    url,
                    file,
                    resume_size=have,
                    headers=headers,
                    expected_size=size,
                    displayed_filename=label,
                )
            except failures() as error:
                if _status(error) == 416:  # the part is complete
                    return
                if file.tell() <= have:  # otherwise the connection broke: resume
                    raise


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
