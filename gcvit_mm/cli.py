"""What the commands share: their arguments, and errors in one line."""

import argparse
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

# --help and wrong arguments are answered at once, and in any environment: whatever is not of the
# standard library is imported where it is used.
from .compat import environment, on_import
from .errors import UserError
from .weights.hub import check_path
from .zoo import TOOLS, config_file

VENV = Path(__file__).parents[1] / '.venv'
"""Where ``make setup`` puts the environment of a checkout."""
BAD_IMAGES, MOST_BAD_IMAGES = 'bad_images.txt', 100
LESS_MEMORY = (
    'take fewer images (train_dataloader.batch_size), recompute activations '
    '(model.backbone.with_cp=True) or take smaller images; on a GPU also --amp'
)
FAILURES = {
    r'CUDA out of memory\. Tried to allocate [\d.]+ \w+': LESS_MEMORY,
    r"can't allocate memory: you tried to allocate \d+ bytes": LESS_MEMORY,
    r'`fused=True` requires all the params': (
        'this torch has no fused AdamW for this device: --cfg-options '
        'optim_wrapper.optimizer.fused=False'
    ),
    r'DataLoader worker \(pid \d+\) is killed by signal: \w+': (
        'mostly for want of memory: take fewer train_dataloader.num_workers, or give more memory '
        '(in containers, also shared memory)'
    ),
    r'DataLoader worker \(pid\(s\) [\d, ]+\) exited unexpectedly': (
        'a process that loads data ended, mostly for want of memory: take fewer '
        'train_dataloader.num_workers'
    ),
    r'DataLoader timed out after [\d.]+ seconds': (
        'a process that loads data is stuck: look at the file system that the data are on, or '
        'allow more time by train_dataloader.timeout'
    ),
}
"""What PyTorch says (RuntimeError), and what to do."""
FOREIGN = '|'.join(
    (
        'Could not import OneDL',
        '"FileClient" will be deprecated',
        '"HardDiskBackend" is the alias of',
        'The prefix is not set in metric class',
        'Default ``avg_non_ignore`` is False',
        'The draw is False, it means that the hook',
    )
)
"""How lines begin that the mm packages print, log or warn of at each start."""


def run(main: Callable[[], None]) -> None:
    """Call a command's ``main``; print the user's mistakes as one line and exit with status 1."""
    _share_cores()
    on_import.after('mmengine', _hide_foreign_lines)
    on_import.after('mmengine', _find_bases_at_once)
    try:
        try:
            main()
        finally:
            if 'tqdm' in sys.modules:
                for bar in list(sys.modules['tqdm'].tqdm._instances):
                    bar.close()  # else messages would share its line
    except (UserError, RuntimeError, ImportError) as error:
        message = _explain(error)
        if message is None:
            raise
        print(f'error: {message}', file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)


def _share_cores() -> None:
    """Let OpenMP's threads sleep soon where they wait, before PyTorch is imported.

    Beside other processes, threads that spin keep those from running that they wait for. The number
    of spins is enough for a training that is alone on the machine.
    """
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '3000')


def _hide_foreign_lines() -> None:
    """Drop what the packages say at each start and nobody who uses the tools can act on.

    It is printed (by packages that look ``print_log`` up when they are imported), logged or warned.
    """
    logging: Any = import_module('mmengine.logging')
    print_log = logging.print_log

    @wraps(print_log)
    def print_own(msg: object, *args: Any, **kwargs: Any) -> None:
        if not re.match(FOREIGN, str(msg)):
            print_log(msg, *args, **kwargs)

    logging.print_log = print_own
    logging.MMLogger.filter = lambda _, record: not re.match(FOREIGN, record.getMessage())
    warnings.filterwarnings('ignore', FOREIGN)


def _find_bases_at_once() -> None:
    """Let mmengine find ``mmdet::_base_/X`` without reading the hundred metafiles of a package.

    No metafile names them; it takes half a second for each.
    """
    config: Any = import_module('mmengine.config.config')
    find = config._get_external_cfg_path

    def find_published(package: str, name: str) -> str:
        if name.startswith('_base_/'):
            raise ValueError(f'{name} has no metafile')  # mmengine then looks for the file itself
        return find(package, name)

    config._get_external_cfg_path = find_published


def _explain(error: Exception) -> str | None:
    """A line for the person at the terminal, None where the traceback is wanted."""
    message = str(error)
    if isinstance(error, UserError):
        if message.startswith('Caught '):  # in a data loader's worker, whose traceback it carries
            message = message.rsplit(f'{type(error).__name__}: ', 1)[-1]
        return ' '.join(message.split())
    if isinstance(error, ImportError):
        return _explain_import(error)
    for pattern, advice in FAILURES.items():
        found = re.search(pattern, message)
        if found:
            return f'{found.group(0)}: {advice}'
    return None


def _explain_import(error: ImportError) -> str | None:
    """What is missing, and how to get it: it may be there, in an environment that is not active."""
    problem = next(iter(environment.problems().values()), None)
    importer = Path(traceback.extract_tb(error.__traceback__)[-1].filename).absolute()
    own = any(map(importer.is_relative_to, (Path(__file__).parent, TOOLS)))
    installed = own or not {'site-packages', 'dist-packages'}.isdisjoint(importer.parts)
    if not problem and not (installed and isinstance(error, ModuleNotFoundError)):
        return None  # in the user's own code
    what = problem.what if problem else f'{(error.name or "").split(".")[0]} is not installed'
    fix = problem.fix if problem else "pip install 'gcvit_mm[mm]'"
    if VENV.is_dir() and Path(sys.prefix) != VENV:
        fix = f'source {shlex.quote(str(VENV))}/bin/activate'
    return ' '.join(f'{what.rstrip(".")} for {sys.executable}: {fix}'.split())


class OptionsAction(argparse.Action):
    """mmengine's ``--cfg-options`` that keeps spaces, and says what is wrong with an entry."""

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
                raise UserError(f'--cfg-options takes KEY=VALUE, not {entry!r}')
            try:
                options[key] = self._parse_iterable(value)
            except AssertionError as error:
                raise UserError(f'--cfg-options {entry}: brackets are not balanced') from error
        setattr(namespace, self.dest, options)

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        from mmengine.config import DictAction

        # mmengine's parser drops spaces, which paths and class names have; no argument has a NUL.
        packed = re.sub(r'(?<=[,(\[])\s+|\s+(?=[,)\]])', '', val.strip()).replace(' ', '\0')
        return _unpack(DictAction._parse_iterable(packed))


def _unpack(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_unpack(item) for item in value)
    return value.replace('\0', ' ') if isinstance(value, str) else value


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The config and what overrides it."""
    parser.add_argument('config', help="config file, or a name of the zoo's")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='KEY=VALUE',
        help='settings that override the config, model.backbone.with_cp=True for example',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--skip-bad-images',
        nargs='?',
        type=int,
        const=MOST_BAD_IMAGES,
        default=0,
        metavar='N',
        help=f'go on without unreadable images, at most N ({MOST_BAD_IMAGES}): see {BAD_IMAGES}',
    )
    add_trust_argument(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """A model that has been trained, as ``gcvit_mm.inference`` finds it."""
    parser.add_argument(
        'model', help="work folder of a training, name of the zoo's, or config file"
    )
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='weights, a file or gcvit://NAME; default: the best or newest of the work folder, and '
        "the published ones of the zoo's classifiers of ImageNet",
    )
    add_trust_argument(parser)


def check_model(args: argparse.Namespace) -> None:
    """Raise ``UserError`` where a model or its checkpoint is not there: at once."""
    if not os.path.isdir(args.model):
        config_file(args.model)
    if args.checkpoint:
        check_path(args.checkpoint)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """The way round the safe reading of checkpoints."""
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
