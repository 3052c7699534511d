"""Reduced images, label maps and outlines that are embedded in the page."""

import base64
import io
from collections.abc import Callable, Sequence

import cv2
import mmcv
import numpy as np
from mmengine.config import Config
from PIL import Image

from ..config import datasets_of
from ..drawing.palette import Color
from ..inference.images import Pipeline

LONGEST = 480
"""Maximum length of a picture's longer side, in pixels."""


def image_reader(cfg: Config) -> Callable[[str], np.ndarray]:
    """Return a function that reads images like the test pipeline, (H, W, 3) in BGR."""
    return Pipeline(datasets_of(cfg.test_dataloader)[0].pipeline).read


def as_photo(image: np.ndarray) -> str:
    """Encode an image, (H, W, 3) in BGR, as the data URI of a small JPEG."""
    reduced = mmcv.imrescale(image, min(1.0, LONGEST / max(image.shape[:2])), interpolation='area')
    _, content = cv2.imencode('.jpg', reduced, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return _data_uri('image/jpeg', content.tobytes())


def as_overlay(labels: np.ndarray, palette: Sequence[Color]) -> str:
    """Encode a label map, (H, W), as the data URI of a small PNG, transparent without a class."""
    scale = min(1.0, LONGEST / max(labels.shape))
    reduced = mmcv.imrescale(labels.astype(np.uint8), scale, interpolation='nearest')
    transparent = len(palette)
    picture = Image.fromarray(np.minimum(reduced, transparent).astype(np.uint8))
    picture.putpalette(np.array([*palette, (0, 0, 0)], np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, 'PNG', transparency=transparent, optimize=True)
    return _data_uri('image/png', file.getvalue())


def as_heat_map(counts: np.ndarray) -> str:
    """Encode counts, (H, W), as the data URI of a PNG with a pixel for each."""
    shares = (255 * counts / max(1, counts.max())).astype(np.uint8)
    _, content = cv2.imencode('.png', cv2.applyColorMap(shares, cv2.COLORMAP_VIRIDIS))
    return _data_uri('image/png', content.tobytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def as_path(mask: np.ndarray) -> str:
    """Convert the outlines of a mask, (H, W), to an SVG path in pixels of the image."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    tolerance = max(mask.shape) / LONGEST / 2
    smooth = (cv2.approxPolyDP(outline, tolerance, True)[:, 0] for outline in outlines)
    return ''.join(
        'M' + ' '.join(f'{x},{y}' for x, y in outline.tolist()) + 'Z'
        for outline in smooth
        if len(outline) > 2
    )


def as_hex(color: Color) -> str:
    """Format a colour as '#rrggbb'."""
    return '#{:02x}{:02x}{:02x}'.format(*color)
