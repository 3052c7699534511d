"""Properties of mmdet, mmsegmentation and mmpretrain that the tools need."""

from typing import NamedTuple


class Package(NamedTuple):
    """A package of models for one task."""

    task: str  # task of the models
    distributions: tuple[str, str]  # names on PyPI: OpenMMLab's, and that of the onedl package
    predictions: str  # suffix that ``tools/test.py --out PREFIX`` adds to the prefix
    # The evaluator that writes predictions and its option for the path, or None.
    evaluator: tuple[str, str] | None


PACKAGES = {
    'mmdet': Package(
        'detection', ('mmdet', 'onedl-mmdetection'), '.bbox.json', ('CocoMetric', 'outfile_prefix')
    ),
    'mmseg': Package('segmentation', ('mmsegmentation', 'onedl-mmsegmentation'), '.maps', None),
    'mmpretrain': Package('classification', ('mmpretrain', 'onedl-mmpretrain'), '.csv', None),
}
"""Packages by module, which is also the ``default_scope`` of their configs."""
