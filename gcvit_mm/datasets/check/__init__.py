"""Checks of all images and annotations that the data loaders of a config read."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ...choices import SPLITS
from ...config import datasets_of, evaluators_of, transforms_of
from ...errors import UserError
from ...run_config import check_evaluator, check_paths
from .coco_file import check_categories, read_coco
from .heads import check_heads, class_names
from .images import check_images, list_entries
from .label_maps import check_label_maps
from .labels import check_labels
from .report import Report, print_reports, summary, write_reports
from .settings import check_settings

__all__ = ['Report', 'check_datasets', 'print_reports', 'summary', 'write_reports']

# Settings that do not affect which files a data set reads.
IRRELEVANT = ('pipeline', 'test_mode', 'filter_cfg', 'lazy_init', 'serialize_data', 'max_refetch')


def check_datasets(
    cfg: Config, splits: Sequence[str] = SPLITS, *, pixels: bool = True
) -> list[Report]:
    """Read all images and annotations of a config, and report their problems.

    Without ``pixels``, images and label maps are not opened, which takes most of the time. There is
    one report per data set, even if several loaders read it.
    """
    reports: list[Report] = []
    by_content: dict[str, Report] = {}
    for split in splits:
        datasets = datasets_of(cfg.get(f'{split}_dataloader'))
        own = []
        for number, dataset in enumerate(datasets, 1):
            name = f'{split} {number}' if len(datasets) > 1 else split
            content = json.dumps(_file_settings(dataset), sort_keys=True, default=str)
            if content in by_content:
                by_content[content].name += f', {name}'
                own.append(by_content[content])
                _check_loader(cfg, split, dataset, by_content[content])
                continue
            by_content[content] = report = Report(name, *_source(dataset))
            reports.append(report)
            own.append(report)
            _check(cfg, split, dataset, report, pixels)
        if datasets and split != 'train':
            _check_evaluator(cfg, split, datasets, own)
    if not reports:
        raise UserError(f'the config has no data loader for {", ".join(splits)}: check --splits')
    _compare_splits(reports)
    return reports


def _file_settings(dataset: ConfigDict) -> dict:
    return {key: value for key, value in dataset.items() if key not in IRRELEVANT}


def _source(dataset: ConfigDict) -> tuple[str, str]:
    place = dataset.get('data_root') or dataset.get('ann_file') or dataset.get('data_prefix')
    file = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    return f'{dataset.type} in {place}', file or str(place)


def _check(cfg: Config, split: str, config: ConfigDict, report: Report, pixels: bool) -> None:
    """Check one data set; a ``UserError`` becomes an error of the report."""
    if '://' in (config.get('data_root') or ''):
        report.add('warning', 'not checked: the data are not on this machine')
        return
    loader = f'{split}_dataloader'
    try:
        check_paths(loader, config)
        classes = class_names(cfg, loader, config)
        check_heads(cfg, loader, classes)
        dataset = _build(cfg, config)
        check_settings(cfg, loader, dataset, report)
        _check_content(cfg, split, config, dataset, report, pixels)
        if not classes:  # they are those that were found
            check_heads(cfg, loader, tuple(report.classes))
    except UserError as error:
        report.add_mismatch(error)


def _check_loader(cfg: Config, split: str, config: ConfigDict, report: Report) -> None:
    """Check the settings of another data loader of data that are checked already."""
    if not report.count('error'):
        check_settings(cfg, f'{split}_dataloader', _build(cfg, config), report)


def _build(cfg: Config, config: ConfigDict) -> BaseDataset:
    """Build a data set with its paths and classes, but without loading annotations."""
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        try:
            dataset = registry.build({**config, 'pipeline': [], 'lazy_init': True})
        except Exception as error:  # data sets raise different errors for wrong arguments
            message = ' '.join(str(error).split())
            raise UserError(f'{config.type} cannot be built from its config: {message}') from error
    for folder in dataset.data_prefix.values():
        if folder and not os.path.isdir(folder):
            raise UserError(f'image folder {folder} does not exist')
    return dataset


def _check_content(
    cfg: Config, split: str, config: ConfigDict, dataset: BaseDataset, report: Report, pixels: bool
) -> None:
    bases = {f'{base.__module__.split(".")[0]}.{base.__name__}' for base in type(dataset).__mro__}
    if _loads_as(dataset, 'mmdet', 'CocoDataset'):
        from .instances import check_instances  # needs pycocotools, which comes with mmdet

        evaluators = [] if split == 'train' else evaluators_of(cfg, split)
        steps = transforms_of(config.get('pipeline', []), 'LoadAnnotations')
        check_instances(
            dataset,
            f'{split}_dataloader',
            report,
            needs_masks=any(step.get('with_mask') for step in steps)
            or any('segm' in evaluator.get('metric', '') for evaluator in evaluators),
            # Lists of test images may have no annotations.
            needs_annotations=not any(evaluator.get('format_only') for evaluator in evaluators),
            pixels=pixels,
        )
    elif 'mmseg.BaseSegDataset' in bases:
        check_label_maps(dataset, report, pixels=pixels)
    elif _loads_as(dataset, 'mmpretrain', 'CustomDataset'):
        check_labels(dataset, report, pixels=pixels)
    elif pixels:
        _check_images(dataset, report)


def _loads_as(dataset: BaseDataset, package: str, name: str) -> bool:
    """Whether a data set reads its files with the inherited methods of class ``name``."""
    for base in type(dataset).__mro__:
        if base.__name__ == name and base.__module__.split('.')[0] == package:
            own = type(dataset)
            return all(
                getattr(own, method) is getattr(base, method)
                for method in ('load_data_list', 'parse_data_info')
            )
    return False


def _check_images(dataset: BaseDataset, report: Report) -> None:
    """Check only the images, for data sets with annotations in an unknown format."""
    report.add('warning', 'annotations are not checked: unknown format', type(dataset).__name__)
    paths = [entry['img_path'] for entry in list_entries(dataset)]
    check_images(report, paths, dataset.data_root)


def _check_evaluator(
    cfg: Config, split: str, datasets: list[ConfigDict], reports: list[Report]
) -> None:
    """Check that the images of the evaluators are those of the data loader."""
    report = reports[-1]
    try:
        check_evaluator(cfg, split)
    except UserError as error:
        report.add_mismatch(error)
        return
    paths = {
        os.path.realpath(os.path.join(dataset.get('data_root') or '', dataset.get('ann_file', '')))
        for dataset in datasets
    }
    for dataset in datasets:
        if dataset.get('indices') is not None:
            what = 'indices: the metrics count the images that the data set leaves out as missed'
            report.add('error', what, f'{split}_dataloader.dataset.indices')
    names = [entry for own in reports for entry in own.names.items()]
    repeated = [i for i, times in Counter(i for i, _ in names).items() if times > 1]
    if repeated:
        what = 'data sets with equal image ids: evaluate them one by one'
        report.add('error', what, f'{split}_dataloader: image id {repeated[0]}')
    for evaluator in evaluators_of(cfg, split):
        ann_file = evaluator.get('ann_file')
        if not names or not ann_file or {os.path.realpath(ann_file)} == paths:
            continue
        try:
            content = read_coco(ann_file, need_annotations=not evaluator.get('format_only'))
            own = {(image['id'], image['file_name']) for image in content['images']}
            classes = class_names(cfg, f'{split}_dataloader', datasets[0])
            check_categories(f'{split}_dataloader', ann_file, content, classes)
        except (UserError, LookupError, TypeError) as error:
            report.add_mismatch(UserError(f'{split}_evaluator.ann_file={ann_file}: {error}'))
            continue
        if own != set(names):
            what = (
                f'the evaluator has {len(own)} images, the data loader {len(names)}, of which '
                f'{len(own & set(names))} are in both: set ann_file of both to one file'
            )
            report.add('error', what, f'{split}_evaluator.ann_file={ann_file}')


def _compare_splits(reports: list[Report]) -> None:
    """Report images that are in two splits, and splits with different classes."""
    paths = defaultdict(list)
    for report in reports:
        if report.name.startswith('train') and ',' in report.name:
            report.add('warning', f'identical data in {report.name.replace(", ", " and ")}')
        for path, digest in report.digests.items():
            paths[digest].append((report, path))
    for copies in paths.values():
        first, path = copies[0]
        for report, copy in copies[1:]:
            if report is first:
                report.add('note', 'duplicate image', f'{copy} = {path}')
            elif _trains(first) != _trains(report):
                report.add('warning', 'image of the training data', f'{copy} = {path}')
    first = reports[0]
    for report in reports[1:]:
        for kind, ours, theirs in (
            ('classes', list(report.classes), list(first.classes)),
            ('class folders', report.folders, first.folders),
        ):
            if ours and theirs and ours != theirs:
                differing = ', '.join(sorted(set(ours) ^ set(theirs))[:5]) or 'their order'
                report.add('error', f'{kind} differ from those of {first.name}', differing)


def _trains(report: Report) -> bool:
    return report.name.startswith('train')
