"""From a command line to a config that mmengine's runner takes: shared by ``tools/``."""

import argparse
import difflib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.dist import broadcast_object_list, get_world_size, init_dist, is_main_process
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from tqdm import tqdm

from ..checkpoint import trust_checkpoints
from ..errors import UserError
from ..threads import share_cores
from ..zoo import config_file
from .loaders import register_loaders

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
LOADER_TIMEOUT = 600
"""Seconds after which a loader that gives no batch is an error."""
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def run(main: Callable[[], None]) -> None:
    """Call a script's ``main``; print a ``UserError`` as one line and exit with status 1."""
    share_cores()
    try:
        try:
            main()
        finally:
            for bar in list(tqdm._instances):  # else messages would share a bar's line
                bar.close()
    except (UserError, RuntimeError) as error:
        message = _explain(error)
        if message is None:
            raise
        print(f'error: {message}', file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)


def _explain(error: Exception) -> str | None:
    """A line for the person at the terminal, None where the traceback is wanted."""
    message = str(error)
    if isinstance(error, UserError):
        if message.startswith('Caught '):  # in a data loader's worker, whose traceback it carries
            message = message.rsplit(f'{type(error).__name__}: ', 1)[-1]
        return ' '.join(message.split())
    for pattern, advice in FAILURES.items():
        found = re.search(pattern, message)
        if found:
            return f'{found.group(0)}: {advice}'
    return None


class OptionsAction(DictAction):
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
        trust_checkpoints()


def load_run_config(args: argparse.Namespace) -> Config:
    """The config that the command line asks for, ready for ``Runner.from_cfg``.

    Raises:
        UserError: As of ``load_config``.
    """
    cfg = load_config(args)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """The config that the command line asks for.

    Raises:
        UserError: The config cannot be read, or an option names no section of it.
    """
    cfg = read_config(args.config)
    _check_options(cfg, args.cfg_options)
    try:
        cfg.merge_from_dict(args.cfg_options)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f'--cfg-options does not fit the config: {error}') from error
    return cfg


def read_config(config: str | os.PathLike) -> Config:
    """Read a config, which executes it.

    Args:
        config: A file, or a name of the zoo's.

    Raises:
        UserError: It cannot be read.
    """
    path = config_file(config)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is Python: it may raise anything
        reason = f'{type(error).__name__}: {error}'
        raise UserError(f'config {path} cannot be read: {reason}') from error
    cfg.setdefault('custom_hooks', [])
    return cfg


def model_of(cfg: Config) -> ConfigDict:
    """The model of a config, with its pre-processor where mmengine's runner puts it."""
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return cfg.model


def _check_options(cfg: Config, options: dict) -> None:
    # A runner takes more sections than a config must have.
    sections = {*cfg, *inspect.signature(Runner.__init__).parameters} - {'self', 'cfg'}
    for key in options:
        first = key.split('.')[0]
        if first not in sections:
            near = difflib.get_close_matches(first, sections, n=1)
            hint = f'did you mean {near[0]}?' if near else f'choose one of {sorted(sections)}'
            raise UserError(f'--cfg-options {key}: the config has no section {first!r}; {hint}')


def prepare(cfg: Config, *, exact_checkpoint: bool, skip_bad_images: int) -> None:
    """What every run gets: safe reading of checkpoints, our hooks, processes that find each other.

    Raises:
        UserError: There are fewer GPUs than processes.
    """
    register_loaders()
    own: list[dict[str, Any]] = [
        dict(type='RunSummaryHook'),
        dict(type='DataTimeHook'),
        dict(type='ProgressBarHook'),
        dict(type='CheckpointGuardHook', exact=exact_checkpoint),
        dict(type='PreemptionHook'),
    ]
    # The config that a run leaves in its work folder has them already.
    types = [hook['type'] for hook in own]
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.get('type') not in types] + own
    if sys.platform == 'darwin':  # where mmengine forks by default, which Metal does not survive
        env = cfg.get('env_cfg', {})
        cfg.env_cfg = {**env, 'mp_cfg': {'mp_start_method': 'spawn', **env.get('mp_cfg', {})}}
    for name in LOADERS:
        if cfg.get(name):
            cfg[name].setdefault('worker_init_fn', dict(type='init_worker'))
            if cfg[name].get('num_workers'):
                cfg[name].setdefault('timeout', LOADER_TIMEOUT)
    if skip_bad_images:
        _skip_bad_images(cfg, skip_bad_images)
    _init_processes(cfg)


def _skip_bad_images(cfg: Config, most: int) -> None:
    os.makedirs(cfg.work_dir, exist_ok=True)
    path = os.path.join(cfg.work_dir, BAD_IMAGES)
    Path(path).unlink(missing_ok=True)
    loaders = []
    for name in LOADERS:
        for dataset in leaf_datasets(cfg.get(name)):
            for step in find_steps(dataset.get('pipeline', []), 'LoadWholeImage'):
                step.update(
                    on_bad='blank' if dataset.get('test_mode') else 'skip',
                    bad_images_file=path,
                    max_bad_images=most,
                )
                loaders.append(step)
    if not loaders:
        raise UserError('--skip-bad-images: no pipeline of this config loads by LoadWholeImage')


def report_bad_images(cfg: Config) -> None:
    """Say at the end of a run how many images were passed over."""
    path = Path(cfg.work_dir) / BAD_IMAGES
    if is_main_process() and path.is_file():
        count = len(set(path.read_text().splitlines()))
        print(f'{count} bad image(s) passed over, listed in {path}')


def leaf_datasets(loader: ConfigDict | None) -> list[ConfigDict]:
    """The data sets of a data loader's config, wrappers taken off."""
    if not loader:
        return []
    found, queue = [], [loader.dataset]
    while queue:
        dataset = queue.pop(0)
        inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets', [])
        queue.extend(inner)
        if not inner:
            found.append(dataset)
    return found


def evaluators_of(cfg: Config, split: str) -> list[ConfigDict]:
    """The evaluators of 'val' or 'test', of which a config may have one, a list or none."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    return list(evaluators) if isinstance(evaluators, list) else [evaluators]


def find_steps(pipeline: Any, name: str) -> list[ConfigDict]:
    """The transforms of a type, however deep they are nested in a pipeline."""
    if isinstance(pipeline, Sequence) and not isinstance(pipeline, str):
        return [step for item in pipeline for step in find_steps(item, name)]
    if isinstance(pipeline, dict):
        own = [pipeline] if pipeline.get('type') == name else []
        return own + find_steps(pipeline.get('transforms', []), name)
    return []


def _init_processes(cfg: Config) -> None:
    if cfg.launcher == 'none':
        return
    env, gpus = cfg.get('env_cfg', {}), torch.cuda.device_count()
    here = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE')
    if here:
        check_gpus(int(here), gpus)
    if gpus or cfg.launcher == 'mpi':
        set_multi_processing(**env.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **env.get('dist_cfg', {}))
        return
    if cfg.launcher == 'slurm':
        _name_slurm_processes()
    # mmengine would select a GPU for each process; it leaves alone what is initialised already.
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,  # as mmengine has it on GPUs
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if is_main_process():
        print(f'no GPU on this machine: {get_world_size()} CPU processes, connected by gloo')


def _name_slurm_processes() -> None:
    """Tell PyTorch what SLURM says of this process, as torchrun does."""
    names = dict(RANK='PROCID', WORLD_SIZE='NTASKS', LOCAL_RANK='LOCALID')
    for name, slurm in names.items():
        os.environ[name] = os.environ[f'SLURM_{slurm}']
    nodes = os.environ['SLURM_NODELIST']
    shown = subprocess.run(
        ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True
    )
    os.environ.setdefault('MASTER_ADDR', shown.stdout.split()[0])
    os.environ.setdefault('MASTER_PORT', '29500')


def agree(decide: Callable[[], Any]) -> Any:
    """What the main process decides, in all processes."""
    decided = [decide() if is_main_process() else None]
    broadcast_object_list(decided)
    return decided[0]


def check_gpus(processes: int, gpus: int) -> None:
    """Raise ``UserError`` where a machine has GPUs, but fewer than processes."""
    if 0 < gpus < processes:
        raise UserError(
            f'{processes} processes were asked for, but this machine has {gpus} GPU(s): pass '
            f'{gpus} to tools/dist_train.sh or tools/dist_test.sh, or as GPUS_PER_NODE to '
            'tools/slurm_train.sh or tools/slurm_test.sh'
        )
