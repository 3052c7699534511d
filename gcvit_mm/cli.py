"""Arguments that several commands share, and errors in one line."""

import argparse
import errno
import logging
import os
import re
import shlex
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import IO, Any

# --help and errors in arguments must be fast and work in any environment, so this module imports
# only the standard library at the top.
from .compat import config_format, environment, on_import
from .errors import UserError, printable_lines
from .weights.hub import check_path
from .zoo import TOOLS, config_file

fcntl: Any = None
with suppress(ImportError):  # Windows has no fcntl
    fcntl = import_module('fcntl')

VENV = Path(__file__).parents[1] / '.venv'
"""The environment that ``make setup`` creates in a checkout."""
BAD_IMAGES, MOST_BAD_IMAGES = 'bad_images.txt', 100
LOCK = '.lock'
"""The file that a process locks in the folder to which it writes."""
LESS_MEMORY = (
    'reduce train_dataloader.batch_size or the size of the images, or recompute activations '
    '(model.backbone.with_cp=True); on a GPU also use --amp'
)
FAILURES = {
    r'CUDA out of memory\. Tried to allocate [\d.]+ \w+': LESS_MEMORY,
    r"can't allocate memory: you tried to allocate \d+ bytes": LESS_MEMORY,
    r'`fused=True` requires all the params': (
        'this torch has no fused AdamW for this device: pass --cfg-options '
        'optim_wrapper.optimizer.fused=False'
    ),
    r'DataLoader worker \(pid \d+\) is killed by signal: \w+': (
        'memory was probably exhausted: reduce train_dataloader.num_workers, or allow more memory '
        '(in containers, also shared memory)'
    ),
    r'DataLoader worker \(pid\(s\) [\d, ]+\) exited unexpectedly': (
        'memory was probably exhausted: reduce train_dataloader.num_workers'
    ),
    r'DataLoader timed out after [\d.]+ seconds': (
        'a worker is stuck: check the file system of the data, or increase train_dataloader.timeout'
    ),
}
"""Messages of PyTorch's ``RuntimeError``, and advice for each."""
FOREIGN = '|'.join(
    (
        'Could not import OneDL',
        '"FileClient" will be deprecated',
        '"HardDiskBackend" is the alias of',
        'The prefix is not set in metric class',
        'Default ``avg_non_ignore`` is False',
        'The draw is False, it means that the hook',
        'The model and loaded state dict do not match',  # CheckpointGuardHook says more
    )
)
"""Beginnings of messages that the OpenMMLab packages print at each start."""
LOG_ONLY = '|'.join(
    (
        'paramwise_options',
        r'\s*-+\s*System environment',
        'Config:',
        'Hooks will be executed',
        r'\s*Name of parameter - Initialization',
        'Distributed training is not used',
        'After building model',
        'load .*backbone in model from',
        'Traceback ',
    )
)
"""Beginnings of long messages of the OpenMMLab packages that belong into log files only."""


def run(main: Callable[[], None]) -> None:
    """Call the ``main`` of a command; print user errors in one line, and exit with status 1."""
    _share_cores()
    on_import.after('mmengine', _hide_foreign_lines)
    on_import.after('mmengine', _find_bases_at_once)
    on_import.after('mmengine', config_format.install)
    logging.FileHandler.handleError = _raise_full_disk  # type: ignore
    on_import.after('pycocotools.coco', _hide_loading)
    try:
        try:
            main()
        finally:
            if 'tqdm' in sys.modules:
                for bar in list(sys.modules['tqdm'].tqdm._instances):
                    bar.close()  # messages must not share the line of a progress bar
    except (UserError, RuntimeError, ImportError, OSError) as error:
        message = explained(error)
        if message is None:
            raise
        print('error:', printable_lines(message), file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)


@contextmanager
def locked(*folders: str | os.PathLike, wait: float = 5) -> Iterator[None]:
    """Keep other processes from writing to folders, which are created, within a ``with`` block.

    The system releases the locks when the process ends, even if it is killed. Of the processes of a
    distributed run, the first one holds them.

    Args:
        folders: The folders.
        wait: Seconds to wait for another process, which may be ending.

    Raises:
        UserError: Another process writes to a folder, or a folder cannot be written.
    """
    ranks = map(os.environ.get, ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    files: dict[str, IO] = {}
    new = [folder for folder in map(os.path.realpath, folders) if not os.path.exists(folder)]
    try:
        if fcntl and next(filter(None, ranks), '0') == '0':
            for folder in dict.fromkeys(map(os.path.realpath, folders)):
                files[folder] = _lock(folder, wait)
        yield
    finally:
        for folder, file in files.items():
            Path(folder, LOCK).unlink(missing_ok=True)
            file.close()
        for folder in new:
            with suppress(OSError):  # it is not empty
                os.rmdir(folder)


def _lock(folder: str, wait: float) -> IO:
    path, end = os.path.join(folder, LOCK), time.monotonic() + wait
    while True:
        try:
            os.makedirs(folder, exist_ok=True)
            # A link in a folder from elsewhere would let another file be overwritten.
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
            file = os.fdopen(number, 'a+', encoding='utf-8', errors='replace')
        except OSError as error:
            what = f'folder {folder} cannot be written: {error.strerror}'
            if os.path.isfile(folder):
                what = f'{folder} is a file: choose a folder'
            raise UserError(what) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that held the lock removes the file.
            if not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                raise FileNotFoundError
            # Workers that are forked would keep the lock of a process that was killed.
            os.register_at_fork(after_in_child=file.close)
            file.truncate(0)
            command = shlex.join(sys.argv)[:200]
            file.write(f'process {os.getpid()} on {socket.gethostname()} ({command})')
            file.flush()
        except (BlockingIOError, FileNotFoundError):
            file.seek(0)
            holder = file.read(1000)
            file.close()
            if time.monotonic() > end:
                raise UserError(
                    f'another process writes to {folder}: {holder}: wait for its end, or choose '
                    'another folder'
                ) from None
            time.sleep(0.1)
            continue
        except OSError as error:
            print(
                f'warning: {folder} cannot be locked ({error.strerror}): start no second process '
                'that writes to it',
                file=sys.stderr,
            )
        return file


def _raise_full_disk(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """Let a log that cannot be written end a command; logging prints a traceback for each line."""
    if isinstance(sys.exception(), OSError):
        raise
    logging.Handler.handleError(handler, record)


def _share_cores() -> None:
    """Let waiting OpenMP threads sleep after a short time; to be called before importing PyTorch.

    If other processes use the machine, spinning threads block the threads that they wait for. The
    number of spins is enough for a run that has the machine to itself.
    """
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '3000')


def _hide_foreign_lines() -> None:
    """Hide messages of the packages at each start that users of the tools cannot act on.

    Some are printed by ``print_log``, which packages look up at import, others logged or warned.
    """
    logging: Any = import_module('mmengine.logging')
    print_log = logging.print_log

    @wraps(print_log)
    def print_own(msg: object, *args: Any, **kwargs: Any) -> None:
        if not re.match(FOREIGN, str(msg)):
            print_log(printable_lines(str(msg)), *args, **kwargs)

    def log_own(_: Any, record: Any) -> bool:
        # Names in files of others must not control the terminal.
        record.msg, record.args = printable_lines(record.getMessage()), ()
        return not re.match(FOREIGN, record.msg)

    logging.print_log = print_own
    logging.MMLogger.filter = log_own
    logging.MMLogger.callHandlers = _call_handlers
    warnings.filterwarnings('ignore', FOREIGN)


def _hide_loading() -> None:
    """Let pycocotools load annotations without printing four lines for each file."""
    vars(sys.modules['pycocotools.coco'])['print'] = lambda *_: None


def _call_handlers(logger: Any, record: Any) -> None:
    """Write a message to the log file, and unless it is one of ``LOG_ONLY`` to the terminal."""
    file_only = re.match(LOG_ONLY, record.getMessage())
    for handler in logger.handlers:
        to_file = isinstance(handler, logging.FileHandler)
        if record.levelno >= handler.level and (to_file or not file_only):
            handler.handle(record)


def _find_bases_at_once() -> None:
    """Let mmengine find ``mmdet::_base_/X`` without reading all metafiles of a package.

    Metafiles do not list base configs, and reading them takes half a second for each.
    """
    config: Any = import_module('mmengine.config.config')
    find = config._get_external_cfg_path

    def find_published(package: str, name: str) -> str:
        if name.startswith('_base_/'):
            raise ValueError(f'{name} has no metafile')  # mmengine then looks for the file
        return find(package, name)

    config._get_external_cfg_path = find_published


def explained(error: Exception) -> str | None:
    """The message for the terminal; None if the traceback is to be shown."""
    message = str(error)
    if isinstance(error, UserError):
        if message.startswith('Caught '):  # the traceback of a data loader's worker
            message = message.rsplit(f'{type(error).__name__}: ', 1)[-1]
        return ' '.join(message.split())
    if isinstance(error, ImportError):
        return _explain_import(error)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        what = f'{error.filename or "a file"} cannot be written ({error.strerror})'
        return f'{what}: free disk space, or choose another folder' if full else None
    for pattern, advice in FAILURES.items():
        if match := re.search(pattern, message):
            return f'{match[0]}: {advice}'
    return None


def _explain_import(error: ImportError) -> str | None:
    """Say which package is missing and how to install it, or that another environment has it."""
    problem = next(iter(environment.problems().values()), None)
    importer = Path(traceback.extract_tb(error.__traceback__)[-1].filename).absolute()
    own = any(map(importer.is_relative_to, (Path(__file__).parent, TOOLS)))
    installed = own or not {'site-packages', 'dist-packages'}.isdisjoint(importer.parts)
    if not problem and not (installed and isinstance(error, ModuleNotFoundError)):
        return None  # an error in the user's own code
    what = problem.what if problem else f'{(error.name or "").split(".")[0]} is not installed'
    fix = problem.fix if problem else "pip install 'gcvit_mm[mm]'"
    if VENV.is_dir() and Path(sys.prefix) != VENV:
        fix = f'source {shlex.quote(str(VENV))}/bin/activate'
    return ' '.join(f'{what.rstrip(".")} for {sys.executable}: {fix}'.split())


class OptionsAction(argparse.Action):
    """mmengine's ``--cfg-options``, with dictionaries, quotes, spaces, and errors in one line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest))
        for entry in values:
            key, equals, value = entry.partition('=')
            if not equals:
                raise UserError(f'--cfg-options {entry}: pass KEY=VALUE')
            try:
                options[key] = parse_value(value)
            except (ValueError, TypeError, RecursionError) as error:
                raise UserError(f'--cfg-options {entry}: {error}') from error
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """Read a value of ``--cfg-options``, written as in Python, where quotes are not needed.

    Args:
        text: A number, True, False, None or a text; a list ``[a, b]`` or ``a,b``, a tuple
            ``(a, b)``, or a dictionary ``dict(key=value)`` or ``{'key': value}``; at any depth.
            Quoted values are texts.

    Raises:
        ValueError: Brackets or quotes are not balanced, or an entry of a dictionary has no value.
    """
    text = text.strip()
    if text.startswith(OPENING) or ',' in text:
        items = _split(text, ',')
        if len(items) > 1:
            return [parse_value(item) for item in items if item or item is not items[-1]]
    if len(text) > 1 and text[0] in '\'"' and text[-1] == text[0]:
        return text[1:-1]
    start = next((opening for opening in OPENING if text.startswith(opening)), '')
    if start and text[-1] == CLOSING[start[-1]]:
        items = _split(text[len(start) : -1], ',')
        items = items if items[-1] else items[:-1]  # a trailing comma, or nothing
        if start in '[(':
            values = [parse_value(item) for item in items]
            return tuple(values) if start == '(' else values
        pairs = [_split(item, ':' if start == '{' else '=', most=1) for item in items]
        if single := [pair[0] for pair in pairs if len(pair) < 2]:
            raise ValueError(f'{single[0]} in {text} has no value')
        return {parse_value(key): parse_value(value) for key, value in pairs}
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return {'true': True, 'false': False}.get(text.lower(), None if text == 'None' else text)


OPENING = ('dict(', '{', '[', '(', "'", '"')
CLOSING = {'(': ')', '[': ']', '{': '}', "'": '', '"': ''}


def _split(text: str, separator: str, most: int = -1) -> list[str]:
    """Split a text at separators outside of brackets and quotes, at most ``most`` times."""
    items, quote, closing = [''], '', ''
    for char in text:
        if quote:
            quote = '' if char == quote else quote
        elif char in '\'"' and (items[-1].rstrip() or '(')[-1] in '([{,=:':
            quote = char  # elsewhere it is an apostrophe
        elif char in '([{':
            closing = CLOSING[char] + closing
        elif char in ')]}':
            if char != closing[:1]:
                raise ValueError(f'brackets are not balanced in {text}')
            closing = closing[1:]
        elif char == separator and not closing and len(items) != most + 1:
            items.append('')
            continue
        items[-1] += char
    if quote or closing:
        raise ValueError(f'{"quotes" if quote else "brackets"} are not balanced in {text}')
    return [item.strip() for item in items]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config and the options that override its settings."""
    parser.add_argument('config', help='config file, or name of a config of this package')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='KEY=VALUE',
        help='settings that override the config, such as model.backbone.with_cp=True',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--skip-bad-images',
        nargs='?',
        type=int,
        const=MOST_BAD_IMAGES,
        default=0,
        metavar='N',
        help=f'skip at most N ({MOST_BAD_IMAGES}) unreadable images and list them in {BAD_IMAGES}',
    )
    add_trust_argument(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a trained model, as ``gcvit_mm.inference`` looks it up."""
    parser.add_argument('model', help='work directory of a run, name of a config, or config file')
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='weights, a file or gcvit://NAME; default: the best or newest of the work directory, '
        'or the published weights of an ImageNet classifier',
    )
    add_trust_argument(parser)


def check_model(args: argparse.Namespace) -> None:
    """Raise a ``UserError`` if a model or its checkpoint does not exist, without slow imports."""
    if not os.path.isdir(args.model):
        config_file(args.model)
    if args.checkpoint:
        check_path(args.checkpoint)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option to read checkpoints that may execute code."""
    parser.add_argument(
        '--trust-checkpoint',
        action=_TrustAction,
        nargs=0,
        help='read checkpoints that may execute code: only for files that you made yourself',
    )


class _TrustAction(argparse.Action):
    def __call__(self, *_: Any) -> None:
        from .weights.files import trust_checkpoints

        trust_checkpoints()
