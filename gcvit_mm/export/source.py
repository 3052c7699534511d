"""Loading of the model to export, and the description that is stored with it."""

import os
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch.export import ExportedProgram

from ..config import build_model, read_config, task_of, test_dataset
from ..inference.model import load_model
from ..version import __version__
from ..weights.hub import published
from ..weights.mm_loaders import safe_loaders
from ..work_dir import find_model
from .graph import INPUT, ImageModel


@dataclass
class Source:
    """A model to export."""

    model: Any  # the model, on the CPU and in evaluation mode
    task: str  # 'detection', 'segmentation' or 'classification'
    cfg: Config
    about: dict[str, Any]  # config, weights, classes and test pipeline of the model, as plain data


def load_source(
    model: str | os.PathLike, checkpoint: str | None = None, random_weights: bool = False
) -> Source:
    """Load the model of a config or a work directory; random weights are for configs."""
    if random_weights:
        cfg, file = read_config(model), None
    else:
        cfg, file = find_model(model, checkpoint)
    task = task_of(cfg)
    with safe_loaders():
        network, meta = load_model(cfg, file, 'cpu') if file else (_random_model(cfg), {})
    name = Path(file).name if file else 'random'
    licences = {weights.file: weights.licence for weights in published().values()}
    about: dict[str, Any] = dict(
        config=Path(cfg.filename).stem,
        weights=name,
        licence=licences.get(name),
        task=task,
        **meta,
        test_pipeline=[dict(step) for step in test_dataset(cfg).pipeline],
    )
    return Source(network, task, cfg, about)


def describe(
    source: Source, graph: ImageModel, program: ExportedProgram, options: dict[str, Any]
) -> dict[str, Any]:
    """The description of the inputs and outputs of a file, stored in it and beside it."""
    results = program.graph.output_node().args[0]
    dtypes = [_name(result.meta['val'].dtype) for result in results]
    height, width = graph.size or ('H', 'W')
    order = {1: 'grey', 3: 'RGB'}.get(graph.channels, f'RGB and {graph.channels - 3} more')
    return dict(
        **source.about,
        input=dict(
            name=INPUT, dtype='uint8', shape=['N', height, width, graph.channels], channels=order
        ),
        outputs={
            name: dict(dtype=dtype, shape=list(axes))
            for (name, axes), dtype in zip(graph.outputs.items(), dtypes, strict=True)
        },
        graph=options,
        thresholds=dict(graph.thresholds),
        mask_threshold=graph.mask_threshold,
        normalisation_in_file=dict(
            mean=graph.mean.flatten().tolist(),
            std=graph.std.flatten().tolist(),
            channels='RGB' if graph.is_rgb else 'BGR',
        ),
        versions=dict(gcvit_mm=__version__, torch=torch.__version__),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def _random_model(cfg: Config) -> Any:
    torch.manual_seed(0)
    with redirect_stdout(StringIO()):  # hides messages that packages print at import
        return revert_sync_batchnorm(build_model(cfg)).eval()
