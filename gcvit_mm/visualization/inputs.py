"""What a model is given, as pictures again."""

from typing import Any

import numpy as np
from torch import Tensor


def to_pictures(preprocessor: Any, inputs: Tensor) -> np.ndarray:
    """Undo the normalisation of images.

    Args:
        preprocessor: The model's ``data_preprocessor``.
        inputs: What it made of images, (B, 3, H, W).

    Returns:
        (B, H, W, 3) of uint8 in RGB. Padding has the colour that normalised zeros stand for.
    """
    pixels = inputs * getattr(preprocessor, 'std', 1) + getattr(preprocessor, 'mean', 0)
    # Images are loaded in BGR. mmpretrain has a name of its own for turning them.
    is_rgb = getattr(preprocessor, 'to_rgb', None) or getattr(
        preprocessor, '_channel_conversion', False
    )
    pixels = pixels if is_rgb else pixels.flip(1)
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
