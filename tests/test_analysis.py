"""What the report says about detections agrees with COCO's own evaluator and with brute force."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gcvit_mm.errors import UserError
from gcvit_mm.report.thresholds import best_threshold


def random_data(seed: int, images: int = 12) -> tuple[dict, list[dict]]:
    """Boxes with crowds among them, and predictions near and far, with few different scores."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(10, 10 + images):
        for _ in range(rng.integers(0, 6)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)]
            category = int(rng.choice([2, 5, 7]))
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=image, category_id=category, bbox=box,
                    area=box[2] * box[3], iscrowd=int(rng.random() < 0.15),
                )
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                near = (np.array(box) + rng.normal(0, rng.choice([1, 4, 15]), 4)).clip(1)
                wrong = rng.random() < 0.2
                results.append(
                    dict(
                        image_id=image, bbox=near.tolist(), score=round(float(rng.random()), 1),
                        category_id=int(rng.choice([2, 5, 7])) if wrong else category,
                    )
                )  # fmt: skip
    truth = dict(
        images=[dict(id=i, width=100, height=100) for i in range(10, 10 + images)],
        annotations=annotations,
        categories=[dict(id=i, name=f'class {i}') for i in (2, 5, 7)],
    )
    return truth, results


def write(folder: Path, truth: dict, results: list[dict]) -> tuple[Path, Path]:
    paths = folder / 'truth.json', folder / 'predictions.bbox.json'
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


def coco_evaluation(truth: Path, results: list[dict]) -> COCOeval:
    with redirect_stdout(StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
        evaluation.evaluate()
    return evaluation


def f1_of(truth: Path, results: list[dict]) -> float:
    """F1 at an IoU of 0.5 from the matches of COCO's evaluator."""
    right = wrong = objects = 0
    for entry in filter(None, coco_evaluation(truth, results).evalImgs):
        if entry['aRng'] == [0, 1e5**2]:
            counted = entry['dtIgnore'][0] == 0
            right += (entry['dtMatches'][0][counted] > 0).sum()
            wrong += (entry['dtMatches'][0][counted] == 0).sum()
            objects += (np.array(entry['gtIgnore']) == 0).sum()
    return 2 * right / (right + wrong + objects)


@pytest.mark.parametrize('seed', range(5))
def test_no_score_has_a_larger_f1_than_the_best_threshold(seed, tmp_path):
    truth, results = random_data(seed)
    paths = write(tmp_path, truth, results)
    score, f1 = best_threshold(*paths)
    by_score = {
        least: f1_of(paths[0], [r for r in results if r['score'] >= least])
        for least in {result['score'] for result in results}
    }
    assert f1 == pytest.approx(max(by_score.values()))
    assert by_score[score] == pytest.approx(f1)
    assert 0.2 < f1 < 0.95


def test_without_a_correct_prediction_no_score_is_low_enough(tmp_path):
    truth, results = random_data(0)
    assert best_threshold(*write(tmp_path, truth, [])) == (1, 0)
    far = [{**result, 'bbox': [900, 900, 5, 5]} for result in results]
    assert best_threshold(*write(tmp_path, truth, far)) == (1, 0)
    assert best_threshold(*write(tmp_path, {**truth, 'annotations': []}, results)) == (1, 0)


def test_files_of_different_data_or_kinds_are_refused_by_name(tmp_path):
    truth, results = random_data(0)
    paths = write(tmp_path, truth, [{**results[0], 'image_id': 98765}])
    with pytest.raises(UserError, match=r'predictions\.bbox\.json .*not in the annotations'):
        best_threshold(*paths)
    for bad in ('{', '[]'):
        paths[0].write_text(bad)
        with pytest.raises(UserError, match=r'truth\.json cannot be read'):
            best_threshold(*paths)


def test_the_threshold_needs_no_torch():
    code = 'import sys, gcvit_mm.report.thresholds; assert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
