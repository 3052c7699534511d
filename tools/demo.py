"""Train and evaluate a small Mask R-CNN on generated images, and write a report.

The work directory is ``work_dirs/demo``, with checkpoints and logs of ``tools/train.py``, results
of ``tools/test.py``, ``metrics.json``, ``curves.png``, ``predictions.png`` and ``report.html``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import _package  # noqa: F401

from gcvit_mm.cli import locked, run
from gcvit_mm.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from pycocotools.coco import COCO

TOOLS = Path(__file__).parent
CONFIG = TOOLS.parent / 'configs' / 'mask_rcnn_gcvit_nano_shapes.py'
DATA = Path('data/shapes')
WORK_DIR = Path('work_dirs/demo')
SCORE = 0.5
COLUMNS, ROWS, ZOOM = 4, 3, 3


def main() -> None:
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument('--epochs', type=int, help='number of epochs, fewer for a quick trial')
    epochs = parser.parse_args().epochs
    import matplotlib

    from gcvit_mm.datasets.shapes import make_shapes

    matplotlib.use('Agg')
    start = time.time()
    with locked(DATA):  # for its whole length: two demos share all folders
        make_shapes(DATA)
        shutil.rmtree(WORK_DIR, ignore_errors=True)
        fewer = '--cfg-options', f'train_cfg.max_epochs={epochs}', 'train_cfg.val_interval=1'
        call('train.py', CONFIG, '--work-dir', WORK_DIR, *fewer if epochs else ())
        checkpoint = WORK_DIR / (WORK_DIR / 'last_checkpoint').read_text()
        predictions = WORK_DIR / 'validation'
        call('test.py', CONFIG, checkpoint, '--work-dir', WORK_DIR, '--out', predictions)
        metrics = write_metrics(time.time() - start)
        plot_curves(WORK_DIR / 'curves.png')
        plot_predictions(WORK_DIR / 'predictions.png')
        call('report.py', WORK_DIR, '--predictions', predictions)
    print(
        f'box AP50 {metrics["bbox_mAP_50"]:.3f}, mask AP50 {metrics["segm_mAP_50"]:.3f} in '
        f'{metrics["minutes"]:.1f} minutes: {checkpoint}, {WORK_DIR}/metrics.json, '
        f'{WORK_DIR}/curves.png, {WORK_DIR}/predictions.png; report: {WORK_DIR}/report.html'
    )


def call(script: str, *arguments: object) -> None:
    """Run another tool, which prints its own messages."""
    command = [sys.executable, str(TOOLS / script), *map(str, arguments)]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f'{script} failed, see above')


def write_metrics(seconds: float) -> dict[str, float]:
    results = json.loads((WORK_DIR / 'validation.metrics.json').read_text())
    metrics = {name.removeprefix('coco/'): value for name, value in results.items()}
    metrics['minutes'] = round(seconds / 60, 2)
    (WORK_DIR / 'metrics.json').write_text(json.dumps(metrics, indent=1) + '\n')
    return metrics


def plot_curves(path: Path) -> None:
    import matplotlib.pyplot as plt

    log = min(WORK_DIR.glob('*/vis_data/scalars.json')).read_text().splitlines()  # of the training
    entries = [json.loads(line) for line in log]
    steps = [entry for entry in entries if 'loss' in entry]
    evaluations = [entry for entry in entries if 'coco/bbox_mAP_50' in entry]
    epochs = [entry['step'] for entry in evaluations]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    left.plot([e['step'] for e in steps], [e['loss'] for e in steps], color='black', label='sum')
    for name in ('loss_cls', 'loss_bbox', 'loss_mask'):
        left.plot([e['step'] for e in steps], [e[name] for e in steps], label=name)
    left.set(xlabel='step', ylabel='training loss', ylim=(0, None))
    for name, label in (('bbox', 'box'), ('segm', 'mask')):
        for suffix, style in (('_50', '-'), ('', '--')):
            right.plot(
                epochs,
                [e[f'coco/{name}_mAP{suffix}'] for e in evaluations],
                style,
                marker='o',
                color='tab:blue' if name == 'bbox' else 'tab:orange',
                label=f'{label} AP{suffix.removeprefix("_")}',
            )
    right.set(xlabel='epoch', ylabel='validation AP', ylim=(0, 1), xticks=epochs)
    for axes, corner in ((left, 'upper right'), (right, 'lower right')):
        axes.legend(loc=corner)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_predictions(path: Path) -> None:
    import cv2
    import numpy as np
    from pycocotools.coco import COCO

    truth = COCO(DATA / 'annotations' / 'instances_validation.json')
    predictions = truth.loadRes(str(WORK_DIR / 'validation.segm.json'))
    images, pictures = truth.loadImgs(truth.getImgIds()), []
    for i in np.linspace(0, len(images) - 1, ROWS * COLUMNS).astype(int):
        image = images[i]
        pixels = cv2.imread(str(DATA / 'images' / 'validation' / image['file_name']))[..., ::-1]
        drawn = [ann for ann in predictions.imgToAnns[image['id']] if ann['score'] >= SCORE]
        pictures += [
            draw('ground truth', pixels, truth, truth.imgToAnns[image['id']]),
            draw('prediction', pixels, truth, drawn),
        ]
    rows = map(np.hstack, np.array_split(pictures, ROWS))
    cv2.imwrite(str(path), np.vstack(list(rows))[..., ::-1])


def draw(title: str, pixels: np.ndarray, coco: COCO, annotations: list[dict]) -> np.ndarray:
    import cv2
    import numpy as np

    from gcvit_mm.datasets.shapes import CLASSES, PALETTE
    from gcvit_mm.drawing.canvas import Canvas

    picture = cv2.resize(pixels, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)
    canvas = Canvas(picture, CLASSES, PALETTE, (ZOOM, ZOOM))
    canvas.lines([title])
    crowds = [ann for ann in annotations if ann.get('iscrowd')]
    objects = [ann for ann in annotations if ann not in crowds]
    canvas.objects(
        list(map(corners, objects)),
        [ann['category_id'] - 1 for ann in objects],
        list(map(coco.annToRLE, objects)),
        [ann['score'] for ann in objects if 'score' in ann],
    )
    for crowd in crowds:
        canvas.ignored_box(corners(crowd))
    return np.pad(canvas.finish(), ((4, 4), (4, 4), (0, 0)), constant_values=255)


def corners(annotation: dict) -> tuple[float, ...]:
    x, y, width, height = annotation['bbox']
    return x, y, x + width, y + height


if __name__ == '__main__':
    run(main)
