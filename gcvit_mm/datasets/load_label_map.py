"""Loading of label maps, whose values must be classes or ignored."""

import io
from collections.abc import Mapping
from typing import Literal

import numpy as np
from mmengine import fileio
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import ExifTags, Image

from ..config import datasets_of, default_scope, transforms_of
from ..errors import UserError
from .load_image import LoadWholeImage, check_decoding

# What mmseg makes of values that ``reduce_zero_label`` and ``label_map`` drop.
DROPPED = 255
INVALID = -1


class WrongMap(Exception):
    """A label map that can be read, but not used.

    Attributes:
        what: What is wrong, and what would be right.
        detail: The wrong value.
    """

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(f'{what}: {detail}')
        self.what = what
        self.detail = detail


def decode_map(content: bytes) -> np.ndarray:
    """Decode a label map completely.

    Returns:
        Array (H, W) of bool or integers from 0, of a palette the indices.

    Raises:
        WrongMap: It cannot hold class numbers.
        Exception: It is damaged; decoders raise all kinds of errors.
    """
    with Image.open(io.BytesIO(content)) as image:
        check_decoding(image)
        values = np.asarray(image)
        bands, frames, kind = image.getbands(), getattr(image, 'n_frames', 1), image.format
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    if len(bands) > 1:
        what = 'label map has several channels: it must have one, with class numbers'
        raise WrongMap(what, ''.join(bands))
    if frames > 1:
        raise WrongMap('label map has several pages: it must have one', f'{frames} pages')
    if turn != 1:  # of a TIFF, Pillow has turned it
        raise WrongMap('label map with an EXIF orientation: save it upright', f'orientation {turn}')
    if kind in ('JPEG', 'MPO'):
        raise WrongMap('label map is compressed with loss, which changes values: use PNG', kind)
    if values.dtype.kind == 'f' or values.min() < 0:
        what = 'label map with values that are not class numbers'
        raise WrongMap(what, f'{values.dtype} from {values.min():g} to {values.max():g}')
    return values


def check_size(values: np.ndarray, width: int, height: int) -> None:
    """Raise ``WrongMap`` if a label map is not as large as its image."""
    if values.shape != (height, width):
        size = f'{values.shape[1]} x {values.shape[0]}, image {width} x {height}'
        raise WrongMap('label map and image differ in size', size)


def labels_of_values(
    reduce_zero_label: bool,
    label_map: Mapping[int, int] | None,
    classes: int,
    ignore_index: int = DROPPED,
) -> np.ndarray:
    """The label to which mmseg converts each value of a label map.

    Returns:
        Array (257,) of int: the class, ``ignore_index``, or ``INVALID``; the last is for all values
        above 255.
    """
    labels = np.arange(256)
    if reduce_zero_label:
        labels = np.where((labels == 0) | (labels == DROPPED), DROPPED, labels - 1)
    if label_map:
        labels = np.array([label_map.get(label, label) for label in labels.tolist()])
    labels[(labels >= classes) & (labels != ignore_index)] = INVALID
    return np.append(labels, INVALID).astype(np.int16)


def check_values(present: np.ndarray, labels: np.ndarray) -> None:
    """Raise ``WrongMap`` if a present value is ``INVALID`` in the table of ``labels_of_values``."""
    wrong = present[labels[np.minimum(present.astype(np.int64), 256)] == INVALID].tolist()
    if wrong:
        right = np.flatnonzero(labels != INVALID).tolist()
        shown = f'{", ".join(map(str, wrong[:10]))}{", ..." if len(wrong) > 10 else ""}'
        what = 'label map values are not classes'
        raise WrongMap(what, f'{shown}; right are {_as_ranges(right) or "none"}')


def _as_ranges(values: list[int]) -> str:
    ends = [i for i, v in enumerate(values) if v + 1 not in values]
    starts = [0, *(i + 1 for i in ends)]
    pairs = [(values[i], values[k]) for i, k in zip(starts, ends, strict=False)]
    return ', '.join(str(a) if a == b else f'{a} to {b}' for a, b in pairs)


@TRANSFORMS.register_module()
class LoadWholeMap(LoadWholeImage):
    """mmseg's ``LoadAnnotations``, but maps that cannot be right stop the run with their name.

    mmseg takes values modulo 256, does not compare sizes, and counts values above the classes in
    evaluations. Right maps give equal labels.

    Args:
        reduce_zero_label: Must be that of the data set; None takes it from there.
        num_classes: Number of classes, to check values; ``prepare_maps`` sets it.
        ignore_index: The label that losses and metrics ignore; ``prepare_maps`` sets it.
        on_bad: What to do with a map that is missing or damaged. 'raise' stops with its name;
            'skip' makes the data set draw another image; 'blank' ignores all pixels. Maps with
            wrong values or of a wrong size always stop the run.
        bad_images_file: File to append the paths of bad maps to, one per line.
        max_bad_images: Maximum number of lines of this file; None for no limit.
        backend_args: Arguments of mmengine's file backend.
    """

    def __init__(
        self,
        reduce_zero_label: bool | None = None,
        num_classes: int | None = None,
        ignore_index: int = DROPPED,
        on_bad: Literal['raise', 'skip', 'blank'] = 'raise',
        bad_images_file: str | None = None,
        max_bad_images: int | None = None,
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(on_bad, bad_images_file, max_bad_images, backend_args=backend_args)
        self.reduce_zero_label = reduce_zero_label
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict | None:
        """Read ``results['seg_map_path']`` into ``gt_seg_map``; images without a map pass.

        Raises:
            UserError: The map cannot be used, or cannot be read and ``on_bad`` is 'raise'.
        """
        path = results.get('seg_map_path')
        if path is None:
            return results
        try:
            values = decode_map(fileio.get(path, backend_args=self.backend_args))
            labels = self._labels(values, results)
        except WrongMap as error:
            raise UserError(f'label map {path}: {error}') from error
        except UserError:
            raise
        except Exception as error:  # decoders raise all kinds of errors for damaged files
            cure = 'replace it, check seg_map_suffix and data_prefix.seg_map_path'
            self._report(f'label map {path}', str(error), cure, path)
            if self.on_bad == 'skip':
                return None
            labels = np.full(results['ori_shape'], self.ignore_index, np.uint8)
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')
        return results

    def _labels(self, values: np.ndarray, results: dict) -> np.ndarray:
        reduce = results['reduce_zero_label']
        if self.reduce_zero_label not in (None, reduce):
            raise UserError(
                f'reduce_zero_label is {self.reduce_zero_label} in LoadWholeMap, but {reduce} in '
                'the data set: set it in the data set alone'
            )
        if 'ori_shape' in results:
            check_size(values, *results['ori_shape'][1::-1])
        classes = 256 if self.num_classes is None else self.num_classes
        table = labels_of_values(reduce, results.get('label_map'), classes, self.ignore_index)
        if values.dtype != np.uint8:
            check_values(np.unique(values), table)
            values = values.astype(np.uint8)
        labels = table[values]
        if labels.min() == INVALID:
            check_values(np.unique(values), table)
        return labels.astype(np.uint8)


def prepare_maps(cfg: Config, loader: str) -> None:
    """Tell the transforms of a data loader which values of label maps are classes.

    What pads maps gets the ignored value too, unless the config says otherwise.
    """
    if cfg.get('default_scope') != 'mmseg':
        return
    for config in datasets_of(cfg.get(loader)):
        try:
            with default_scope(cfg):
                dataset = DATASETS.build({**config, 'pipeline': [], 'lazy_init': True})
            classes, ignored = len(dataset.metainfo['classes']), dataset.ignore_index
        except Exception:  # the check of the data tells the reason
            continue
        pipeline = config.get('pipeline', [])
        for step in transforms_of(pipeline, 'LoadWholeMap'):
            step.update(num_classes=classes, ignore_index=ignored)
        if ignored != DROPPED:
            batches = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
            if batches.get('seg_pad_val') == DROPPED:
                batches['seg_pad_val'] = ignored
            for kind in ('RandomRotate', 'RandomMosaic'):
                for step in transforms_of(pipeline, kind):
                    step.setdefault('seg_pad_val', ignored)
