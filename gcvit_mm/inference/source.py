"""Which config and which checkpoint the name of a model stands for."""

import os
import re
from pathlib import Path

from mmengine.config import Config

from ..checkpoint import verify_checkpoint
from ..config import read_config
from ..engine.resume import checkpoint_folder, find_resumable
from ..errors import UserError
from ..hub import SCHEME, published, resolve
from ..zoo import CONFIGS, config_file


def find_model(
    model: str | os.PathLike, checkpoint: str | os.PathLike | None = None
) -> tuple[Config, str]:
    """The config of a model, and the file that its weights are in.

    Args:
        model: A name of the zoo's, a config file, or the work folder of a training.
        checkpoint: A file or ``gcvit://NAME``, which is fetched. By default, of a work folder the
            best checkpoint, or else the newest whole one; of the zoo's classifiers of ImageNet
            the published weights.

    Raises:
        UserError: One of them cannot be found or read.
    """
    if os.path.isdir(model):
        cfg = read_config(_config_in(Path(model)))
        cfg.work_dir = os.fspath(model)
        checkpoint = checkpoint or _checkpoint_of(cfg)
    else:
        path = config_file(model)
        cfg = read_config(path)
        checkpoint = checkpoint or _published_for(path)
    return cfg, resolve(os.fspath(checkpoint))


def _config_in(folder: Path) -> Path:
    configs = sorted(folder.glob('*.py'))
    if not configs:
        raise UserError(f'{folder} is not the work folder of a training: it has no config (*.py)')
    if len(configs) > 1:
        names = ', '.join(path.name for path in configs)
        raise UserError(
            f'{folder} has several configs ({names}): give the path of one, and a checkpoint'
        )
    return configs[0]


def _checkpoint_of(cfg: Config) -> str:
    """The best checkpoint of a training, or the newest."""
    folder = checkpoint_folder(cfg)
    damaged = []
    for path in sorted(Path(folder).glob('best_*.pth'), key=os.path.getmtime, reverse=True):
        try:
            verify_checkpoint(path)
        except UserError as error:
            damaged.append(str(error))
        else:
            return str(path)
    newest, passed_over = find_resumable(folder)
    if newest:
        return newest
    reasons = ''.join(f'; {line}' for line in damaged + passed_over)
    raise UserError(f'{folder} has no whole checkpoint: give one{reasons}')


def _published_for(config: str) -> str:
    """The published weights of one of the zoo's classifiers of ImageNet."""
    name = re.fullmatch('gcvit_(.+)_imagenet', Path(config).stem)
    if name and name[1] in published() and Path(config).resolve().parent == CONFIGS.resolve():
        return SCHEME + name[1]
    raise UserError(
        f'{config} needs a checkpoint: only the classifiers of ImageNet, gcvit_tiny_imagenet for '
        'example, have published weights'
    )
