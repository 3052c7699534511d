"""Compare the CPU time of COCO's evaluation by hotcoco, faster-coco-eval and the COCO API.

They evaluate equal detections. A small data set is repeated under new ids, which hardly changes
the metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _package  # noqa: F401

from gcvit_mm.cli import run
from gcvit_mm.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('annotations', help="ground truth in COCO's format")
    parser.add_argument('results', help="detections in COCO's format")
    parser.add_argument('--type', choices=['bbox', 'segm'], default='bbox', help='boxes or masks')
    parser.add_argument('--repeat', type=int, default=50, metavar='N', help='copies of the data')
    parser.add_argument('--runs', type=int, default=3, metavar='N', help='runs of each')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    import faster_coco_eval
    import numpy as np
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from gcvit_mm.evaluation.faster_coco_metric import fastest_evaluation

    backends: dict[str, Any] = {
        'faster-coco-eval': faster_coco_eval.COCOeval_faster,
        'COCO API': COCOeval,
    }
    if find_spec('hotcoco'):
        backends['hotcoco'] = fastest_evaluation()
    truth, results = repeat(read(args.annotations), read(args.results), args.repeat)
    print(
        f'{args.type}: {len(truth["images"])} images, {len(truth["annotations"])} objects, '
        f'{len(results)} detections'
    )
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    figures = {}
    for _ in range(args.runs):
        for name, evaluation in backends.items():
            spent, figures[name] = evaluate(COCO, evaluation, truth, results, args.type)
            seconds[name].append(spent)
    slow = np.median(seconds['COCO API'])
    for name, spent in seconds.items():
        print(
            f'{name}: median {np.median(spent):.2f} s, from {min(spent):.2f} to {max(spent):.2f}; '
            f'ratio {slow / np.median(spent):.1f}'
        )
    print(f'AP {figures["COCO API"][0]:.4f}')
    for name, stats in figures.items():
        if not np.allclose(stats, figures['COCO API'], rtol=0, atol=1e-12):
            raise UserError(f'{name} differs from the COCO API, which should not happen: {figures}')


def read(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as JSON: {error}') from error


def repeat(truth: dict, results: list[dict], copies: int) -> tuple[dict, list[dict]]:
    """Repeat images, objects and detections under new ids."""
    step = 1 + max(image['id'] for image in truth['images'])

    def moved(items: list[dict], key: str) -> list[dict]:
        return [{**item, key: item[key] + i * step} for i in range(copies) for item in items]

    annotations = moved(truth['annotations'], 'image_id')
    for number, annotation in enumerate(annotations, start=1):
        annotation['id'] = number
    images = moved(truth['images'], 'id')
    return {**truth, 'images': images, 'annotations': annotations}, moved(results, 'image_id')


def evaluate(
    coco_class: Any, eval_class: Any, truth: dict, results: list[dict], kind: str
) -> tuple[float, np.ndarray]:
    """Run one evaluation of data in memory, and return its seconds and its 12 metrics."""
    truth, results = copy.deepcopy((truth, results))  # evaluations change their arguments
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_class()
        coco.dataset = truth
        coco.createIndex()
        evaluation = eval_class(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return time.process_time() - start, evaluation.stats[:12]


if __name__ == '__main__':
    run(main)
