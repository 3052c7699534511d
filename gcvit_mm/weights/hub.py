"""Published weights by name: ``gcvit://tiny`` is fetched once, verified, and then is a file."""

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
HUB = 'https://huggingface.co'
MANIFEST = ROOT / 'checkpoints' / 'manifest.yml'


@dataclass(frozen=True)
class Weights:
    """A published file, as ``checkpoints/manifest.yml`` lists it.

    Attributes:
        name: What follows ``gcvit://``.
        variant: ``GCViT``'s ``arch``.
        resolution: Size of the images that it was trained on, in pixels.
        windows: Window size of each stage.
        url: Where it is published.
        licence: Its licence.
        top1: Published ImageNet-1k accuracy, in percent.
        size_mb: Size of the file in 10^6 bytes; 0: not published.
        tensors_mb: Size of its tensors, where the one of the file is not published.
        sha256: The SHA-256 of the file or its first digits; empty: the hub's is trusted.
    """

    name: str
    variant: str
    resolution: int
    windows: list[int]
    url: str
    licence: str
    top1: float
    size_mb: int = 0
    tensors_mb: int = 0
    sha256: str = ''

    @property
    def file(self) -> str:
        """The name of the file, on the web and here."""
        return self.url.rsplit('/', 1)[1]

    @property
    def size(self) -> str:
        """What to expect of the download."""
        return f'{self.size_mb} MB' if self.size_mb else f'~{self.tensors_mb} MB'


def published() -> dict[str, Weights]:
    """All published weights by name."""
    from mmengine.fileio import load

    manifest = load(MANIFEST)
    return {
        name: Weights(name, **values)
        for name, values in manifest.items()
        if not name.startswith('.')  # what entries share
    }


def find(name: str) -> Weights:
    """The weights of a name, with or without ``gcvit://``.

    Raises:
        UserError: There are none.
    """
    name = name.removeprefix(SCHEME)
    known = published()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        raise UserError(f'there are no weights {SCHEME}{name}, only {", ".join(known)}{hint}')
    return known[name]


def default_folder() -> Path:
    """Where weights are kept: ``GCVIT_MM_CHECKPOINTS``, or ``checkpoints`` in the current one."""
    folder = os.environ.get('GCVIT_MM_CHECKPOINTS') or 'checkpoints'
    return Path(folder).expanduser().absolute()


def check_path(checkpoint: str | os.PathLike) -> None:
    """Raise ``UserError`` where a checkpoint is the path of a file, and there is none."""
    path = os.fspath(checkpoint)
    if '://' not in path and not os.path.isfile(path):
        raise UserError(f'checkpoint {path} does not exist: check the path')


def resolve(checkpoint: str) -> str:
    """Turn ``gcvit://NAME`` into the path of a file, which is fetched if it is not there.

    Args:
        checkpoint: Such a name, or anything else, which is returned as it is.

    Raises:
        UserError: There are no such weights, or they cannot be fetched.
    """
    if not checkpoint.startswith(SCHEME):
        return checkpoint
    return str(fetch(find(checkpoint), default_folder()))


def fetch(weights: Weights, folder: Path) -> Path:
    """Fetch a file into a folder, unless one of its name is there: that is taken as it is.

    Processes that ask for the same file fetch it once. What an interrupted try has got is kept
    beside the file as ``*.part``, and the next try goes on from there.

    Returns:
        The file's path.

    Raises:
        UserError: It cannot be fetched, or is not what was published.
    """
    path = folder / weights.file
    if path.is_file():
        return path
    url = _url(weights)
    by_hand = f'get {url} and put it at {path}'
    try:
        from huggingface_hub.utils import WeakFileLock
    except ImportError as error:
        raise UserError(
            f'fetching {weights.file} needs huggingface_hub: pip install huggingface_hub, or '
            + by_hand
        ) from error
    lock = path.with_name(f'{path.name}.lock')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            try:
                if not path.is_file():  # else another process was first
                    _download(weights, url, path)
            finally:
                lock.unlink(missing_ok=True)
    except _failures() as error:
        raise UserError(
            f'{weights.file} could not be fetched ({_reason(error)}): try again, or {by_hand}'
        ) from error
    return path


def _failures() -> tuple[Any, ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # Which HTTP library's errors there are depends on the version of huggingface_hub.
    return OSError, *HfHubHTTPError.__bases__


def _url(weights: Weights) -> str:
    # huggingface_hub's own variable for mirrors.
    return weights.url.replace(HUB, (os.environ.get('HF_ENDPOINT') or HUB).rstrip('/'))


def _reason(error: BaseException) -> str:
    if status := _status(error):
        return f'HTTP status {status}'
    return (str(error) or type(error).__name__).splitlines()[0]


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, 'response', None), 'status_code', None)


def _download(weights: Weights, url: str, path: Path) -> None:
    token = None if weights.url.startswith(HUB) else False  # the user's, for the hub only
    size, sha256 = _ask(weights, url, token)
    # Named after the content: what is left of another version is not gone on with.
    part = path.with_name(f'{path.name}.{sha256[:8]}.part')
    _check_space(size or (weights.size_mb or weights.tensors_mb) * 10**6, part)
    print(f'{weights.file}: {weights.size}, licence {weights.licence}, from {url}', flush=True)
    _complete(part, url, size, token, weights.file)
    found = _sha256(part)
    if not found.startswith(sha256):
        part.unlink()
        raise OSError(f'what came has the sha256 {found} instead of {sha256}')
    os.replace(part, path)


def _ask(weights: Weights, url: str, token: bool | None) -> tuple[int | None, str]:
    """What the server says about a file: its size, and its hash."""
    from huggingface_hub import get_hf_file_metadata

    remote = get_hf_file_metadata(url, token=token)
    is_hash = re.fullmatch('[0-9a-f]{64}', remote.etag or '')
    sha256 = remote.etag if remote.etag and is_hash else weights.sha256
    if not sha256:
        raise OSError('the answer has no sha256: is it from the hub, or from a login page?')
    if not sha256.startswith(weights.sha256):
        raise OSError(f'the server has another file by now, of sha256 {sha256}')
    return remote.size or None, sha256  # some versions give the redirection's size, 0


def _check_space(size: int, part: Path) -> None:
    missing = size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if free < missing:
        raise OSError(f'it needs {missing >> 20} MiB, the disk has {free >> 20} MiB free')


def _complete(part: Path, url: str, size: int | None, token: bool | None, shown: str) -> None:
    """Fetch what a file lacks; ``shown`` is the name at the progress bar."""
    # Not hf_hub_download: it starts from the beginning in every process, and checks no hash.
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
                    displayed_filename=shown,
                )
            except _failures() as error:
                if _status(error) == 416:  # there is no more than what the part has
                    return
                if file.tell() <= have:  # else the connection broke: go on
                    raise


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
