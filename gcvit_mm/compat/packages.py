"""What mmdet, mmsegmentation and mmpretrain are to the tools: one record for each."""

from typing import Any, NamedTuple


class Package(NamedTuple):
    """A package whose models are trained.

    Attributes:
        task: What its models do.
        distributions: Its names on PyPI: OpenMMLab's, and that of its continuation.
        predictions: What ``tools/test.py --out PREFIX`` adds to the prefix.
        evaluator: The evaluator that writes them, and by which option; None for our own.
        pictures: Options of its visualization hook that make it draw.
        pictures_in: Option of that hook that names the folder; None where the visualizer has it.
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
"""By module, which is also the ``default_scope`` of its configs."""
