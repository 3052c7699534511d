"""The main job on generated data: train a small Mask R-CNN, evaluate it, and show what came out.

Everything goes to ``work_dirs/demo``: checkpoints and logs of ``tools/train.py``, results of
``tools/test.py``, ``metrics.json``, ``curves.png``, ``predictions.png`` and ``report.html``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import _package  # noqa: F401

from gcvit_mm.cli import run
from gcvit_mm.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from pycocotools.coco import COCO

TOOLS = Path(__file__).parent
CONFIG = TOOLS.parent / 'configs' / 'mask_rcnn_gcvit_nano_shapes.py'
DATA = Path('data/shapes')
WORK_DIR = Path('work_dirs/demo')
SCORE = 0.5
COLUMNS, ROWS = 4, 3


def main() -> None:
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument('--epochs', type=int, help='train for so many, to try it in less time')
    epochs = parser.parse_args().epochs
    import matplotlib

    from gcvit_mm.datasets.shapes import make_shapes

    matplotlib.use('Agg')
    start = time.time()
    make_shapes(DATA)
    shutil.rmtree(WORK_DIR, ignore_errors=True)
    fewer = (f'train_cfg.max_epochs={epochs}', 'train_cfg.val_interval=1') if epochs else ()
    options = ('--cfg-options', *fewer) if fewer else ()
    call('train.py', CONFIG, '--work-dir', WORK_DIR, *options)
    checkpoint = WORK_DIR / (WORK_DIR / 'last_checkpoint').read_text()
    call('test.py', CONFIG, checkpoint, '--work-dir', WORK_DIR, '--out', WORK_DIR / 'validation')
    metrics = write_metrics(time.time() - start)
    plot_curves(WORK_DIR / 'curves.png')
    plot_predictions(WORK_DIR / 'predictions.png')
    call('report.py', WORK_DIR, '--predictions', WORK_DIR / 'validation')
    print(
        f'box AP50 {metrics["bbox_mAP_50"]:.3f}, mask AP50 {metrics["segm_mAP_50"]:.3f} in '
        f'{metrics["minutes"]:.1f} minutes: {checkpoint}, '
        + ', '.join(f'{WORK_DIR}/{name}' for name in ('metrics.json', 'curves.png'))
        + f', {WORK_DIR}/predictions.png; all of it in {WORK_DIR}/report.html'
    )


def call(script: str, *arguments: object) -> None:
    """Run another tool; its messages have been printed when it fails."""
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

    log = min(WORK_DIR.glob('*/vis_data/scalars.json')).read_text().splitlines()  # the training's
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
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch
    from pycocotools.coco import COCO

    from gcvit_mm.datasets.shapes import CLASSES

    truth = COCO(DATA / 'annotations' / 'instances_validation.json')
    found = truth.loadRes(str(WORK_DIR / 'validation.segm.json'))
    figure, grid = plt.subplots(
        ROWS, 2 * COLUMNS, figsize=(4.4 * COLUMNS, 2.35 * ROWS), layout='constrained'
    )
    for image, (left, right) in zip(choose(truth), grid.reshape(-1, 2), strict=True):
        pixels = plt.imread(DATA / 'images' / 'validation' / image['file_name'])
        draw(left, 'ground truth', pixels, truth, truth.imgToAnns[image['id']])
        kept = [ann for ann in found.imgToAnns[image['id']] if ann['score'] >= SCORE]
        draw(right, 'prediction', pixels, truth, kept)
    figure.legend(
        handles=[Patch(color=color(i), label=name) for i, name in enumerate(CLASSES)],
        loc='outside lower center',
        ncols=len(CLASSES),
        title=f'predictions with a score of at least {SCORE}; crowd regions are hatched',
    )
    figure.savefig(path, dpi=110)


def choose(truth: COCO) -> Iterator[dict]:
    """Validation images spread over the set."""
    import numpy as np

    images = truth.loadImgs(truth.getImgIds())
    for i in np.linspace(0, len(images) - 1, ROWS * COLUMNS).astype(int):
        yield images[i]


def draw(axes: Axes, title: str, pixels: np.ndarray, coco: COCO, annotations: list[dict]) -> None:
    import numpy as np
    from matplotlib.patches import Rectangle

    axes.imshow(pixels)
    axes.set_title(title, fontsize=8)
    axes.axis('off')
    for annotation in annotations:
        tint = color(annotation['category_id'] - 1)
        mask = coco.annToMask(annotation)
        crowd = annotation.get('iscrowd', 0)
        axes.imshow(np.dstack([np.broadcast_to(tint, (*mask.shape, 3)), 0.4 * mask]))
        axes.contour(mask, [0.5], colors=[tint], linewidths=1)
        x, y, width, height = annotation['bbox']
        hatch = '///' if crowd else None
        corner = (x - 0.5, y - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, color=tint, hatch=hatch))
        if 'score' in annotation:
            label = dict(facecolor=tint, edgecolor='none', pad=0.6)
            axes.text(x, y - 1, f'{annotation["score"]:.2f}', fontsize=6, color='black', bbox=label)


def color(label: int) -> np.ndarray:
    import numpy as np

    from gcvit_mm.datasets.shapes import PALETTE

    return np.array(PALETTE[label]) / 255


if __name__ == '__main__':
    run(main)
