"""Evaluate a checkpoint of a model of any task."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _package  # noqa: F401

from gcvit_mm.cli import LOCK, add_config_arguments, add_run_arguments, locked, run
from gcvit_mm.errors import UserError
from gcvit_mm.weights.hub import check_path

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    add_run_arguments(parser)
    parser.add_argument(
        '--out',
        metavar='PREFIX',
        help='write metrics to PREFIX.metrics.json and predictions: detections in COCO format to '
        'PREFIX.bbox.json and PREFIX.segm.json; label maps, with the values of the data set, to '
        'PREFIX.maps/IMAGE.png; classes with scores to PREFIX.csv',
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='draw ground truth and predictions to DIR/IMAGE.png; IMAGE is the path of the image '
        'in the folder of all test images',
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='compute features in bfloat16, or float16 if the GPU lacks it; heads use float32',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_path(args.checkpoint)
    from gcvit_mm.run_config import load_run_config

    cfg = load_run_config(args, ('test_dataloader',))
    from mmengine.dist import is_main_process

    import gcvit_mm.evaluation  # noqa: F401  (registers metrics)
    from gcvit_mm.datasets.preflight import check_data
    from gcvit_mm.engine.setup import prepare, report_bad_images, wrong_settings

    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.tta:
        use_tta_pipeline(cfg)
    # Not of the work directory: people test checkpoints of a run that goes on.
    with locked(*filter(None, [args.show_dir])), results_at(args.out) as prefix:
        maps = write_predictions(cfg, prefix) if prefix else None
        with wrong_settings(cfg):
            prepare(cfg, skip_bad_images=args.skip_bad_images)
            check_data(cfg, ('test_dataloader',), keep=True)
            metrics = evaluate(cfg, args.tta, args.amp, maps, args.show_dir)
        if prefix and is_main_process():
            Path(f'{prefix}.metrics.json').write_text(as_json(metrics))
    if args.skip_bad_images:
        report_bad_images(cfg)


def evaluate(
    cfg: Config, tta: bool, amp: bool, maps: str | None, pictures: str | None
) -> dict[str, Any]:
    from mmengine.hooks import PrepareTTAHook
    from mmengine.model import is_model_wrapper
    from mmengine.runner import Runner

    from gcvit_mm.evaluation.prediction_files import PredictionFilesHook

    runner = Runner.from_cfg(cfg)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if amp:
        dtype = extract_in_half_precision(model)
        runner.logger.info(f'Features are computed in {dtype}, predictions in float32')
    if tta:
        runner.model = model  # tests do not need the wrapper for several processes
        runner.register_hook(PrepareTTAHook(tta_model_of(cfg, model)))
    if maps or pictures:
        runner.register_hook(PredictionFilesHook(maps, pictures))
    return runner.test()


def extract_in_half_precision(model: Any) -> str:
    """Compute backbone and neck in half precision, but convert their feature maps to float32.

    Heads need float32: those of mmdet compute box coordinates in the type of the feature maps, and
    bfloat16 would round them to multiples of 8 pixels.
    """
    import torch
    from mmengine.utils import apply_to

    from gcvit_mm.models.precision import half_precision

    on_gpu = torch.cuda.is_available()
    dtype = half_precision()
    extract = model.extract_feat

    def extract_feat(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast('cuda' if on_gpu else 'cpu', dtype):
            maps = extract(*args, **kwargs)
        return apply_to(maps, torch.is_tensor, torch.Tensor.float)

    model.extract_feat = extract_feat
    return str(dtype).removeprefix('torch.')


def use_tta_pipeline(cfg: Config) -> None:
    from gcvit_mm.config import datasets_of

    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UserError('--tta: set tta_model and tta_pipeline in the config')
    for dataset in datasets_of(cfg.test_dataloader):
        dataset.pipeline = cfg.tta_pipeline


def tta_model_of(cfg: Config, model: Any) -> dict[str, Any]:
    settings = dict(cfg.tta_model)
    if getattr(model, 'out_channels', None) == 1 and settings['type'].endswith('SegTTAModel'):
        from gcvit_mm.evaluation.one_channel_tta import OneChannelTTAModel

        settings['type'] = OneChannelTTAModel
    return settings


@contextmanager
def results_at(out: str | None) -> Iterator[str | None]:
    """Yield a temporary prefix to write to; its files are moved to ``out`` if the run succeeds."""
    from mmengine.dist import is_main_process

    if not out:
        yield None
        return
    out = out.removesuffix('.json')
    if out.endswith('/') or os.path.isdir(out):
        raise UserError(
            f'--out {out} is a folder: pass a prefix of file names, such as {Path(out) / "val"}'
        )
    final, partial = Path(out).parent, Path(f'{out}.partial')
    with locked(partial):
        try:
            partial.mkdir(parents=True, exist_ok=True)
            yield str(partial / Path(out).name)
            if is_main_process():
                files = [path for path in partial.rglob('*') if path.is_file()]
                for file in (path for path in files if path.name != LOCK):
                    target = final / file.relative_to(partial)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
        finally:
            if is_main_process():
                shutil.rmtree(partial, ignore_errors=True)


def write_predictions(cfg: Config, prefix: str) -> str | None:
    """Configure the evaluators to write the predictions, or return the folder for label maps."""
    from gcvit_mm.config import evaluators_of, package_of

    package, evaluators = package_of(cfg), evaluators_of(cfg, 'test')
    if package.task == 'segmentation':
        # Evaluators without annotations would write the maps, too.
        cfg.test_evaluator = [metric for metric in evaluators if not metric.get('format_only')]
        return prefix + package.predictions
    if package.evaluator:
        kind, option = package.evaluator
        for evaluator in evaluators:
            if evaluator.type.endswith(kind):
                evaluator[option] = prefix
    else:
        # A config that an earlier test wrote to its work directory has the metric already.
        evaluators = [metric for metric in evaluators if metric.type != 'ClassificationCSV']
        evaluators.append(dict(type='ClassificationCSV', out_file=prefix + package.predictions))
    cfg.test_evaluator = evaluators
    return None


def as_json(metrics: dict[str, Any]) -> str:
    """Format metrics, some of which are NumPy scalars, as JSON with 4 decimals; NaN is null."""
    plain = {
        name: value.tolist() if hasattr(value, 'tolist') else value
        for name, value in metrics.items()
    }
    # JSON has no NaN: mmdet's for classes without objects.
    rounded = {
        k: v if not isinstance(v, float) else round(v, 4) if math.isfinite(v) else None
        for k, v in plain.items()
    }
    return json.dumps(rounded, indent=1, allow_nan=False) + '\n'


if __name__ == '__main__':
    run(main)
