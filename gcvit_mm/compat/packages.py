"""Properties of mmdet, mmsegmentation and mmpretrain that the tools need."""

from typing import Any, NamedTuple


class Package(NamedTuple):
    """A package of models for one task.

    Attributes:
        task: Task of the models.
        distributions: Names on PyPI: OpenMMLab's, and that of the onedl package.
        predictions: Suffix that ``tools/test.py --out PREFIX`` adds to the prefix.
        evaluator: The evaluator that writes predictions and its option for the path, or None.
        pictures: Options of the visualization hook that enable drawing.
        pictures_in: Option of the visualization hook for the folder; None if the visualizer has it.
    """

    task: str
    distributions: tuple[str, str]
    predictions: str
    evaluator: tuple[str, str] | None
    pictures: dict[str, Any]
    pictures_in: str | None


PACKAGES = {
    'mmdet': Package(
        'detection',
        ('mmdet', 'onedl-mmdetection'),
        '.bbox.json',
        ('CocoMetric', 'outfile_prefix'),
        dict(draw=True),
        'test_out_dir',
    ),
    'mmseg': Package(
        'segmentation',
        ('mmsegmentation', 'onedl-mmsegmentation'),
        '.maps',
        ('IoUMetric', 'output_dir'),
        dict(draw=True),
        None,
    ),
    'mmpretrain': Package(
        'classification',
        ('mmpretrain', 'onedl-mmpretrain'),
        '.csv',
        None,
        dict(enable=True, interval=1),
        'out_dir',
    ),
}
"""Packages by module, which is also the ``default_scope`` of their configs."""
