"""Prediction by an exported file with numpy: the source of what an export writes beside it."""

import inspect
import json
from typing import Any

import numpy as np
from PIL import Image


def bilinear(positions: Any, length: int) -> Any:
    """The weights of the pixels of a line at positions, (positions, length)."""
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(length, dtype=np.float32)))


def resize(image: Any, height: int, width: int) -> Any:
    """Resize (H, W, C) by bilinear interpolation, as OpenCV does."""
    for axis, side in enumerate((height, width)):
        old = image.shape[axis]
        at = ((np.arange(side, dtype=np.float32) + 0.5) * old / side - 0.5).clip(0, old - 1)
        image = np.moveaxis(np.tensordot(bilinear(at, old), image, (1, axis)), 0, axis)
    return image


def prepare(image: Any, pipeline: list[dict]) -> Any:
    """Resize and crop an image (H, W, 3) as the test pipeline of the model does."""
    for step in pipeline:
        (height, width), kind = image.shape[:2], step['type'].split('.')[-1]
        if kind == 'Resize':
            scale: Any = step.get('scale') or 0
            factor = step.get('scale_factor')
            if scale:
                short, long = sorted((height, width))
                factor = min(max(scale) / long, min(scale) / short)
            size = int(height * factor + 0.5), int(width * factor + 0.5)
            size = tuple(scale[::-1]) if scale and not step.get('keep_ratio') else size
            image = image if size == (height, width) else resize(image, *size).round()
        elif kind == 'ResizeEdge':
            factor = step['scale'] / min(height, width)
            size = int(width * factor), int(height * factor)
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        elif kind == 'CenterCrop':
            side = step['crop_size']
            top, left = max(0, round((height - side) / 2)), max(0, round((width - side) / 2))
            image = image[top : top + side, left : left + side]
    return image.astype(np.uint8)


def paste(mask: Any, box: Any, height: int, width: int) -> Any:
    """The probability of each pixel of an image (H, W), from a grid in a box."""
    out = np.zeros((height, width), np.float32)
    x0, y0 = np.clip(np.floor(box[:2]) - 1, 0, None).astype(int)
    x1, y1 = np.clip(np.ceil(box[2:]) + 1, 0, (width, height)).astype(int)
    if x1 > x0 and y1 > y0:
        scale = np.array(mask.shape[::-1]) / np.maximum(box[2:] - box[:2], 1e-6)
        columns = bilinear((np.arange(x0, x1) + 0.5 - box[0]) * scale[0] - 0.5, mask.shape[1])
        rows = bilinear((np.arange(y0, y1) + 0.5 - box[1]) * scale[1] - 0.5, mask.shape[0])
        out[y0:y1, x0:x1] = rows @ mask @ columns.T
    return out


def detection(outputs: dict, about: dict, size: Any, scale: Any, score: float) -> Any:
    """The objects: label, score, box (x1, y1, x2, y2) and mask (H, W) in the original image."""
    objects = []
    for slot in np.flatnonzero((outputs['labels'][0] >= 0) & (outputs['scores'][0] >= score)):
        one = {name: values[0][slot] for name, values in outputs.items()}
        box, label, value = one['boxes'] * scale, int(one['labels']), float(one['scores'])
        objects.append(dict(label=label, score=value, box=box.tolist(), mask=None))
        if 'masks' in one:
            objects[-1]['mask'] = paste(one['masks'], box, *size) >= about['mask_threshold']
    return objects


def segmentation(outputs: dict, about: dict, size: Any, scale: Any, score: float) -> Any:
    """The class of each pixel, (H, W)."""
    if 'labels' in outputs:
        labels = outputs['labels'][0]
        rows, columns = (np.arange(n) * old // n for n, old in zip(size, labels.shape, strict=True))
        return labels[rows][:, columns]
    logits = resize(outputs['logits'][0].transpose(1, 2, 0), *size)
    if logits.shape[2] > 1:
        return logits.argmax(2)
    return (1 / (1 + np.exp(-logits[..., 0])) > about['mask_threshold']).astype(int)


def classification(outputs: dict, about: dict, size: Any, scale: Any, score: float) -> Any:
    """The probability of each class."""
    return outputs['scores'][0]


FINISH = dict(detection=detection, segmentation=segmentation, classification=classification)


def load(file: Any) -> tuple:
    """The session of an ONNX file, and its description."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of optional inputs
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    return session, json.loads(session.get_modelmeta().custom_metadata_map['gcvit_mm'])


def predict(session: Any, about: dict, image: Any, score: float = 0.3) -> Any:
    """Predict on an image, (H, W, channels) of uint8 in RGB; objects need the minimum score."""
    pixels, size = prepare(image, about['test_pipeline']), image.shape[:2]
    arrays = session.run(list(about['outputs']), {'image': pixels[None]})
    scale = np.array([size[1] / pixels.shape[1], size[0] / pixels.shape[0]] * 2)
    outputs = dict(zip(about['outputs'], arrays, strict=True))
    return FINISH[about['task']](outputs, about, size, scale, score)


def source(task: str, file: str) -> str:
    """The text of a program that predicts on an image by a file."""
    functions: list[Any] = [load, predict, prepare, resize, bilinear, FINISH[task]]
    functions += [paste] if task == 'detection' else []
    code = '\n\n'.join(inspect.getsource(one) for one in functions)
    return PROGRAM.format(code=code, task=task, file=file, name=file.replace('.', '_'))


PROGRAM = '''"""Predict on an image by {file}; needs numpy, onnxruntime and Pillow.

    python {name}.py IMAGE
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

{code}

FINISH = dict({task}={task})

if __name__ == '__main__':
    session, about = load(Path(__file__).with_name('{file}'))
    image = np.asarray(Image.open(sys.argv[1]).convert('RGB'))
    print('classes:', about.get('classes'))
    found = predict(session, about, image)
    if isinstance(found, list):  # objects, whose masks are too long to print
        found = [{{key: one[key] for key in ('label', 'score', 'box')}} for one in found]
    print(found)
'''
