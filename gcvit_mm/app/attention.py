"""Where a model looks in a photo, as one picture."""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.dataset import pseudo_collate
from PIL import Image

from ..errors import UserError
from ..inference import Predictor
from ..models import GCViT
from ..visualization import attention_maps, draw_attention, to_pictures


def draw_attention_of(predictor: Predictor, photo: Image.Image, title: str) -> np.ndarray:
    """Draw the attention of each stage, from the middle of the photo.

    Args:
        predictor: The model.
        photo: The photo.
        title: What stands above the picture.

    Returns:
        The picture, (H, W, 3) of uint8 in RGB.

    Raises:
        UserError: The model's backbone is not a GC ViT.
    """
    model: Any = predictor.model
    backbone, preprocessor = getattr(model, 'backbone', None), model.data_preprocessor
    if not isinstance(backbone, GCViT):
        raise UserError(f'attention is drawn for GC ViT, not for {type(backbone).__name__}')
    data = predictor.pipeline.prepare(predictor.read(photo))
    batch = preprocessor(pseudo_collate([data]), False)
    image = to_pictures(preprocessor, batch['inputs'])[0]
    # Without the padding that detectors get, right and at the bottom.
    height, width = batch['data_samples'][0].metainfo['img_shape'][:2]
    maps = attention_maps(backbone, batch['inputs'], (width / 2, height / 2))
    canvas = FigureCanvasAgg(draw_attention(image[:height, :width], maps, title))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
