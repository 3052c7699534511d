"""ONNX files in float16 or int8, of which as much stays float32 as the metric needs."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from .check import stack
from .evaluation import Evaluation
from .files import META, SCOPES, load
from .graph import INPUT, ImageModel
from .runner import prepare

LINEAR = ('Conv', 'Gemm', 'MatMul')
"""Operators that are converted, if they have weights."""
BLOCK = re.compile(r'model\.(backbone\.stages\.\d+|\w+\.\w+)')
"""What stays float32 or not: a stage of the backbone, or a part of a neck or a head."""
CALIBRATION = 32
"""Number of images for the ranges of values."""


def reduce(
    file: Path,
    precision: str,
    graph: ImageModel,
    images: Iterable[Image.Image],
    evaluation: Evaluation,
    about: dict[str, Any],
) -> dict[str, float]:
    """Replace a float32 ONNX file by one in float16 or int8, and return its metrics.

    If its metric loses too much, blocks return to float32: those first that alone repair it most.

    Raises:
        UserError: The metric loses too much however much is float32.
    """
    import onnx

    model = onnx.load(file)
    weights = {each.name for each in model.graph.initializer}
    blocks: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in LINEAR and node.input[1] in weights:
            scopes = next((x.value for x in node.metadata_props if x.key == SCOPES), '')
            if block := BLOCK.search(scopes):
                blocks.setdefault(block[1], []).append(node.name)
    with TemporaryDirectory() as folder:
        convert = CONVERTERS[precision](model, Path(folder), calibration(graph, images, about))

        def attempt(kept: Iterable[str]) -> tuple[float, dict[str, float]]:
            convert(file, [name for key in blocks.keys() - kept for name in blocks[key]])
            found = evaluation(load(file))
            return evaluation.loss(found), found

        kept: list[str] = []
        loss, found = attempt(kept)
        if loss > evaluation.most:
            print(f'{precision} loses {loss:.1f} points: looking for what stays float32')
            alone = {key: attempt([key])[0] for key in tqdm(blocks, 'measuring', leave=False)}
            for key in sorted(alone, key=alone.__getitem__)[:-1]:
                kept.append(key)
                loss, found = attempt(kept)
                if loss <= evaluation.most:
                    break
    if loss > evaluation.most:
        raise UserError(
            f'no {precision} file loses at most {evaluation.most:g} points: the best loses '
            f'{loss:.1f}; raise --max-loss, or export in float32'
        )
    about.update(precision=precision, float32_blocks=kept, max_loss=evaluation.most)
    reduced = onnx.load(file)
    onnx.helper.set_model_props(reduced, {META: json.dumps(about)})
    onnx.save(reduced, file)
    print('float32:', ', '.join(kept) or 'only what has no weights')
    return found


def calibration(
    graph: ImageModel, images: Iterable[Image.Image], about: dict[str, Any]
) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the graph that are resized as the test pipeline does."""
    for image in images:
        size = graph.size or prepare(np.asarray(image), about['test_pipeline']).shape[:2]
        yield {INPUT: stack([image], size, graph.channels).numpy()}


def _int8(model: Any, folder: Path, inputs: Iterator[dict]) -> Callable[[Path, list[str]], None]:
    from onnxruntime import set_default_logger_severity
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    set_default_logger_severity(3)  # it warns of optional inputs

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    def convert(file: Path, nodes: list[str]) -> None:
        logging.disable(logging.WARNING)  # it asks for a preprocessing that changes nothing here
        try:
            quantize_static(
                model,
                file,
                Reader(),
                op_types_to_quantize=list(LINEAR),
                nodes_to_quantize=nodes,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,  # processors without VNNI add two products in 16 bits
                calibration_cache_path=folder / 'ranges.json',
            )
        finally:
            logging.disable(logging.NOTSET)

    return convert


def _float16(model: Any, folder: Path, inputs: Iterator[dict]) -> Callable[[Path, list[str]], None]:
    # The converter of onnxruntime rounds all values, also the coordinates and indices of boxes.
    import onnx
    from onnx import TensorProto, numpy_helper
    from onnx.helper import make_node

    def convert(file: Path, nodes: list[str]) -> None:
        half = onnx.ModelProto.FromString(model.SerializeToString())
        tensors = {each.name: each for each in half.graph.initializer}
        converted: list[Any] = []
        for node in half.graph.node:
            if node.name not in nodes:
                converted.append(node)
                continue
            for i, name in enumerate(node.input):
                node.input[i] = f'{node.name}_{i}'
                if name in tensors:
                    value = numpy_helper.to_array(tensors[name]).astype(np.float16)
                    tensors[node.input[i]] = numpy_helper.from_array(value, node.input[i])
                else:
                    cast = make_node('Cast', [name], [node.input[i]], to=TensorProto.FLOAT16)
                    converted.append(cast)
            (name,) = node.output
            node.output[0] = f'{node.name}_out'
            cast = make_node('Cast', [node.output[0]], [name], to=TensorProto.FLOAT)
            converted += [node, cast]
        used = {name for node in converted for name in node.input}
        kept = [each for name, each in tensors.items() if name in used]
        for field, values in (half.graph.node, converted), (half.graph.initializer, kept):
            del field[:]
            field.extend(values)
        onnx.save(half, file)

    return convert


CONVERTERS: dict[str, Callable[..., Callable[[Path, list[str]], None]]] = dict(
    float16=_float16, int8=_int8
)
"""Functions that make a function to convert some nodes of a model, by precision."""
