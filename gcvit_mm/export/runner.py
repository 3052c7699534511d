"""Functions in numpy that run an exported file; the export writes those for its task beside it."""

import numpy as np
from PIL import Image


def bilinear(positions, length):
    """Weights of the pixels of a line at positions of a line, (positions, length)."""
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(length, dtype=np.float32)))


def resize(image, height, width):
    """Resize (H, W, C) as the training's bilinear interpolation does, without a filter."""
    for axis, side in enumerate((height, width)):
        old = image.shape[axis]
        at = ((np.arange(side, dtype=np.float32) + 0.5) * old / side - 0.5).clip(0, old - 1)
        image = np.moveaxis(np.tensordot(bilinear(at, old), image, (1, axis)), 0, axis)
    return image


def prepare(image, pipeline):
    """Resize (H, W, 3) as the test pipeline of the model does."""
    for step in (step for step in pipeline if step['type'] == 'Resize'):
        factor, (height, width) = step.get('scale_factor'), image.shape[:2]
        if not factor:
            large, small = max(step['scale']), min(step['scale'])
            factor = min(large / max(height, width), small / min(height, width))
        size = int(height * factor + 0.5), int(width * factor + 0.5)
        if not step.get('keep_ratio'):
            size = step['scale'][::-1] if step.get('scale') else size
        image = image if size == (height, width) else resize(image, *size).round()
    return image.astype(np.uint8)


def paste(mask, box, height, width):
    """The probabilities (H, W) of the pixels of an image, from those of a grid in a box."""
    out = np.zeros((height, width), np.float32)
    x0, y0 = np.clip(np.floor(box[:2]) - 1, 0, None).astype(int)
    x1, y1 = np.clip(np.ceil(box[2:]) + 1, 0, (width, height)).astype(int)
    if x1 > x0 and y1 > y0:
        scale = np.array(mask.shape[::-1]) / np.maximum(box[2:] - box[:2], 1e-6)
        columns = bilinear((np.arange(x0, x1) + 0.5 - box[0]) * scale[0] - 0.5, mask.shape[1])
        rows = bilinear((np.arange(y0, y1) + 0.5 - box[1]) * scale[1] - 0.5, mask.shape[0])
        out[y0:y1, x0:x1] = rows @ mask @ columns.T
    return out
