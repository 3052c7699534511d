"""Writing and loading of exported files in all formats."""

import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..errors import UserError
from ..fileio import read_json
from .graph import INPUT, ImageModel, open_sizes
from .operators import translations

OPSET = 20
"""Version of the ONNX operators; ONNX Runtime supports it since 1.17."""
META = 'gcvit_mm'
"""Key of the description in a file, as JSON."""

SCOPES = 'pkg.torch.onnx.name_scopes'
"""The key of the modules of a node, which PyTorch's exporter writes."""

ONNX_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
PACKAGES = {'.onnx': ONNX_PACKAGES, '.xml': (*ONNX_PACKAGES, 'openvino'), '.pt2': ()}
"""The packages that write and load a format."""

RUNTIMES = {'.onnx': 'ONNX Runtime', '.xml': 'OpenVINO', '.pt2': 'torch.export'}
"""The runtimes of formats."""

Run = Callable[..., dict[str, Tensor]]
"""Maps images (N, H, W, 3) of uint8, and other inputs by name, to the outputs by name."""


def check_target(path: Path) -> None:
    """Check that a file can be written, before the model is exported."""
    if path.suffix not in FORMATS or path.is_dir():
        *others, last = FORMATS
        ends = f'{", ".join(others)} or {last}'
        raise UserError(f'--out {path}: pass a file whose name ends in {ends}')
    if not path.parent.is_dir():
        raise UserError(f'--out {path}: folder {path.parent} does not exist: create it first')
    missing = [name for name in PACKAGES[path.suffix] if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{path.suffix} files need {' and '.join(missing)}: pip install 'gcvit_mm[export]' "
            f'{" ".join({"openvino"} & set(missing))}'.rstrip()
        )


def check_graph(path: Path, graph: ImageModel) -> None:
    """Check that a format can hold a graph."""
    if path.suffix == '.pt2' and graph.thresholds:
        raise UserError(
            f'--out {path}: a .pt2 file of a whole detector needs this package to load: export to '
            '.onnx or .xml, or pass --what features'
        )


def write(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    """Write a traced model."""
    FORMATS[path.suffix][0](program, path, about)


def description(path: Path) -> dict[str, Any]:
    """What an export wrote beside a file."""
    return read_json(path.with_suffix('.json'))


def load(path: Path) -> Run:
    """Load a file to run it on the CPU, by the runtime of its format."""
    return FORMATS[path.suffix][1](path)


def runtimes(path: Path) -> dict[str, Run]:
    """A file in the installed runtimes that can load it, by name; OpenVINO loads ONNX files too."""
    own = ['.onnx', '.xml'] if path.suffix == '.onnx' else [path.suffix]
    runs = {}
    for suffix in own if all(map(find_spec, PACKAGES['.xml'])) else own[:1]:
        try:
            runs[RUNTIMES[suffix]] = FORMATS[suffix][1](path)
        except RuntimeError as error:  # OpenVINO cannot load all that ONNX Runtime does
            reason = str(error).strip().splitlines()[-1]
            print(f'{RUNTIMES[suffix]} cannot load {path.name}: {reason}')
    return runs


def _write_onnx(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    import onnx
    import onnx_ir

    silence = io.StringIO()
    try:
        with redirect_stdout(silence), redirect_stderr(silence), open_sizes():
            onnx_program: Any = torch.onnx.export(
                program,
                input_names=[INPUT, *about['thresholds']],
                output_names=list(about['outputs']),
                opset_version=OPSET,
                custom_translation_table=translations(),
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f'the model has an operation that ONNX lacks, try .pt2 instead: {reason}'
        ) from error
    model = onnx_program.model
    for node in model.graph:
        for key in node.metadata_props.keys() - {SCOPES}:
            del node.metadata_props[key]  # such as paths of this machine
    names = ('batch', 'height', 'width')
    onnx_program.rename_axes(
        {
            str(size): name
            for size, name in zip(model.graph.inputs[0].shape, names, strict=False)
            if not isinstance(size, int)
        }
    )
    for value, default in zip(model.graph.inputs[1:], about['thresholds'].values(), strict=True):
        # An input with an initializer is optional.
        value.const_value = onnx_ir.tensor(np.array([default], np.float32), name=value.name)
        model.graph.register_initializer(value)
    model.metadata_props[META] = json.dumps(about)
    onnx_program.save(path)
    onnx.checker.check_model(os.fspath(path), full_check=True)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # it warns of optional inputs
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]

    def run(image: Tensor, **more: Tensor) -> dict[str, Tensor]:
        inputs = {name: np.ascontiguousarray(x) for name, x in {INPUT: image, **more}.items()}
        arrays = session.run(names, inputs)
        return {name: torch.from_numpy(x) for name, x in zip(names, arrays, strict=True)}

    return run


def _write_openvino(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    import openvino

    with TemporaryDirectory() as folder:
        file = Path(folder, 'model.onnx')
        _write_onnx(program, file, about)
        openvino.save_model(openvino.convert_model(file), path, compress_to_fp16=False)


def _load_openvino(path: Path) -> Run:
    import openvino

    # The default may be bfloat16, by the processor.
    settings = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=torch.get_num_threads())
    model = openvino.Core().compile_model(path, 'CPU', settings)
    inputs = {name for value in model.inputs for name in value.names}

    def run(image: Tensor, **more: Tensor) -> dict[str, Tensor]:
        # OpenVINO holds optional inputs as constants.
        arrays = {name: np.ascontiguousarray(x) for name, x in {INPUT: image, **more}.items()}
        results = model({name: x for name, x in arrays.items() if name in inputs})
        return {value.any_name: torch.from_numpy(x.copy()) for value, x in results.items()}

    return run


def _write_pt2(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    torch.export.save(program, path, extra_files={f'{META}.json': json.dumps(about)})


def _load_pt2(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(image: Tensor, **more: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return module(image, *more.values())

    return run


FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], Run]]] = {
    '.onnx': (_write_onnx, _load_onnx),
    '.xml': (_write_openvino, _load_openvino),
    '.pt2': (_write_pt2, _load_pt2),
}
"""Functions that write and load a format, by the suffix of its files."""
