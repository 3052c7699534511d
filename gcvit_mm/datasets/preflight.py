"""The check of the data of a run before anything is built."""

import os
from functools import partial

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..config import datasets_of, default_scope, find_class
from ..errors import UserError
from ..run_config import check_places, local_datasets
from .check import check_datasets
from .shared import FILES, once_a_machine, share_annotations


def check_data(cfg: Config, loaders: tuple[str, ...], *, keep: bool = False) -> None:
    """Check the data of some data loaders by the rules of ``tools/check_dataset.py``.

    Images and label maps are not opened: what needs their pixels is checked when they are read.
    ``keep`` is for runs that read all of the data next: the data sets of the config take over what
    this has read, on each machine in one process, and the others share its memory.
    """
    error = once_a_machine(partial(_error, cfg, loaders, keep)) if keep else _error(cfg, loaders)
    if error:
        raise UserError(error)
    if keep:
        with default_scope(cfg):
            for loader in loaders:
                for dataset in datasets_of(cfg.get(loader)):
                    cls = find_class(DATASETS, dataset.type)
                    if isinstance(cls, type) and issubclass(cls, BaseDataset):
                        share_annotations(cls)


def _error(cfg: Config, loaders: tuple[str, ...], keep: bool = False) -> str:
    """Check data, print warnings, and return the first error, or ''."""
    try:
        check_places(cfg, loaders)
        splits = [loader.removesuffix('_dataloader') for loader, _ in local_datasets(cfg, loaders)]
        if not splits:
            return ''
        reports = check_datasets(cfg, list(dict.fromkeys(splits)), pixels=False)
    except UserError as error:
        return str(error)
    findings = {
        severity: [
            (report, what, places)
            for report in reports
            for (level, what), places in report.problems.items()
            if level == severity
        ]
        for severity in ('error', 'warning')
    }
    for report, what, places in findings['error']:
        others = sum(reported.count('error') for reported in reports) - 1
        hint = f' (and {others} more: run tools/check_dataset.py)' if others else ''
        return f'{report.label(what)}{places[0]}{hint}'
    for report, what, places in findings['warning'] * is_main_process():
        more = f' (and {len(places) - 1} more)' if len(places) > 1 else ''
        print_log(f'warning: {report.label(what)}{places[0]}{more}', logger='current')
    if keep:
        files = {os.path.realpath(report.file): report.content for report in reports}
        FILES.update((path, content) for path, content in files.items() if content)
    return ''
