"""Where to go on with a training."""

import os
from pathlib import Path

from mmengine.config import Config

from ..checkpoint import read_checkpoint, verify_checkpoint
from ..errors import UserError


def checkpoint_folder(cfg: Config) -> str:
    """Where the training of a config has its checkpoints, as mmengine's ``CheckpointHook`` does."""
    hooks = cfg.get('default_hooks') or {}
    out_dir = (hooks.get('checkpoint') or {}).get('out_dir')
    if not out_dir or out_dir == cfg.work_dir:
        return cfg.work_dir
    return os.path.join(out_dir, os.path.basename(cfg.work_dir.rstrip('/')))


def find_resumable(folder: str | os.PathLike, since: str = '') -> tuple[str | None, list[str]]:
    """Find the newest checkpoint in a work folder that is whole and has the state of a training.

    Args:
        folder: The work folder; it need not exist.
        since: Only checkpoints of this time or later are looked at, as they state it.

    Returns:
        The file, None where there is none, and a line for each checkpoint that is skipped.
    """
    found, passed_over = [], []
    for path in Path(folder).glob('*.pth'):
        try:
            content = read_checkpoint(path, lazy=True)
        except UserError as error:
            passed_over.append(str(error))
            continue
        if isinstance(content, dict) and {'meta', 'optimizer', 'message_hub'} <= content.keys():
            # The time in the file, as copying may change the file's own.
            time, step = (
                content['meta'].get(key, none) for key, none in (('time', ''), ('iter', 0))
            )
            if time >= since:
                found.append((time, step, path))
    latest = Path(folder, 'last_checkpoint')
    if latest.is_file() and not Path(folder, latest.read_text()).exists():
        passed_over.append(f'{latest} names {latest.read_text()}, which does not exist')
    for _, _, path in sorted(found, reverse=True):
        try:
            verify_checkpoint(path)
        except UserError as error:
            passed_over.append(str(error))
        else:
            return str(path), passed_over
    return None, passed_over
