"""Data sets of other formats, brought into the form that the configs read."""

from pathlib import Path

from .dataset import Dataset

__all__ = ['Dataset', 'bring_in']


def bring_in(
    source: str | Path,
    dest: str | Path | None = None,
    *,
    format: str | None = None,
    task: str | None = None,
    val: float = 0.2,
    seed: int = 0,
    copy: bool = False,
) -> Dataset:
    """Recognise the labels of a folder, and write them in the form that the configs read.

    The source is never changed. Images stay where they are, unless ``copy`` is set.

    Args:
        source: The folder with images and labels.
        dest: The folder to write; default: ``gcvit_mm`` in the source. One that was written before
            is replaced when the new one is complete.
        format: One of ``FORMATS``; default: it is recognised.
        task: One of ``TASKS``; default: what the labels are for.
        val: The share of images for validation, if the source has no split.
        seed: The seed of that split.
        copy: Copy the images too.

    Returns:
        The data set. Its reports, of what was read and skipped, are in ``import.json``.

    Raises:
        UserError: No format is recognised, a label file is broken, no image has a label that can
            be used, or ``dest`` cannot be written.
    """
    raise NotImplementedError
