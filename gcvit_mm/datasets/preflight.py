"""The check of the data of a run before anything is built."""

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from ..errors import UserError
from ..run_config import check_places, local_datasets
from .check import check_datasets


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check the data of some data loaders by the rules of ``tools/check_dataset.py``.

    Images and label maps are not opened: what needs their pixels is checked when they are read.
    """
    check_places(cfg, loaders)
    splits = [loader.removesuffix('_dataloader') for loader, _ in local_datasets(cfg, loaders)]
    if not splits:
        return
    reports = check_datasets(cfg, list(dict.fromkeys(splits)), pixels=False)
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
        raise UserError(f'{report.label(what)}{places[0]}{hint}')
    for report, what, places in findings['warning'] * is_main_process():
        more = f' (and {len(places) - 1} more)' if len(places) > 1 else ''
        print_log(f'warning: {report.label(what)}{places[0]}{more}', logger='current')
