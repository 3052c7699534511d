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
from gcvit_mm.report.analysis import calibration_part
from gcvit_mm.report.errors import costs_of_errors
from gcvit_mm.report.intervals import compare, interval, resample, resampled_ap
from gcvit_mm.report.matches import match_all
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


# --- AP, its intervals, and what errors cost --------------------------------------------------


def matched(truth: dict, results: list[dict], folder: Path, ious=(0.5,)):
    path, _ = write(folder, truth, results)
    with redirect_stdout(StringIO()):
        coco = COCO(str(path))
    return match_all(coco, results, 'bbox', coco.getCatIds(), ious)


def coco_aps(truth: dict, results: list[dict], folder: Path) -> np.ndarray:
    """AP of each IoU and class by COCO's evaluator, NaN without objects."""
    evaluation = coco_evaluation(write(folder, truth, results)[0], results)
    with redirect_stdout(StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval['precision'][..., 0, -1]
    return np.where((precision > -1).all(1), precision.mean(1), np.nan)


@pytest.mark.parametrize('seed', range(3))
def test_ap_is_that_of_coco_also_for_repeated_and_absent_images(seed, tmp_path):
    truth, results = random_data(seed)
    results = [{**r, 'score': r['score'] + i / 1e5} for i, r in enumerate(results)]  # no ties
    matches = matched(truth, results, tmp_path, np.linspace(0.5, 0.95, 10))
    measured = resampled_ap(matches, 'box')
    aps = coco_aps(truth, results, tmp_path)
    assert measured['box AP'][0] == pytest.approx(np.nanmean(aps))
    assert measured['box AP50'][0] == pytest.approx(np.nanmean(aps[0]))
    assert measured[''][0] == pytest.approx(aps.mean(0))

    drawn = resample(len(matches.images))[7]
    assert (drawn.max(), drawn.min(), drawn.sum()) >= (2, 0, len(matches.images))
    copies = [
        (image, 1000 * k)
        for image, n in zip(matches.images, drawn, strict=True)
        for k in range(1, n + 1)
    ]
    repeated = {
        name: [
            {**item, key: item[key] + step, **({} if key == 'id' else {'id': i})}
            for i, (item, step) in enumerate(
                ((item, step) for image, step in copies for item in items if item[key] == image), 1
            )
        ]
        for name, key, items in (
            ('images', 'id', truth['images']),
            ('annotations', 'image_id', truth['annotations']),
            ('results', 'image_id', results),
        )
    }
    found = repeated.pop('results')
    expected = coco_aps({**truth, **repeated}, found, tmp_path)
    assert measured[''][7] == pytest.approx(expected.mean(0), nan_ok=True)
    assert measured['box AP'][7] == pytest.approx(np.nanmean(expected))


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution():
    right = np.arange(400) % 5 > 0
    share, low, high = interval(resample(400) @ right / 400)
    assert share == pytest.approx(80)
    assert high - share == pytest.approx(share - low)
    assert high - share == pytest.approx(196 * 0.4 / 20, rel=0.15)
    difference = compare({'a': resample(9) @ np.eye(9)[0] / 9}, {'a': np.full(201, 0.5)}).rows[0]
    assert difference[1:4] == [pytest.approx(100 / 9), 50, pytest.approx(50 - 100 / 9)]


def iou(a: list[float], b: list[float]) -> float:
    width, height = (
        max(0, min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k])) for k in (0, 1)
    )
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


@pytest.mark.parametrize('seed', range(4))
def test_errors_cost_what_fixing_them_in_the_files_gains(seed, tmp_path):
    """Each kind of error is fixed in copies of the data, which COCO's evaluator then judges."""
    truth, results = random_data(seed, images=20)
    results = [{**r, 'score': r['score'] + i / 1e5} for i, r in enumerate(results)]  # no ties
    costs = costs_of_errors(matched(truth, results, tmp_path))
    ids = {result['score']: i for i, result in enumerate(results)}
    right, ignored, found = set(), set(), set()
    evaluation = coco_evaluation(write(tmp_path, truth, results)[0], results)
    for entry in filter(None, evaluation.evalImgs):
        if entry['aRng'] == [0, 1e5**2]:
            for score, target, skip in zip(
                entry['dtScores'], entry['dtMatches'][0], entry['dtIgnore'][0], strict=True
            ):
                (ignored if skip else right if target else set()).add(ids[score])
                found |= {int(target)} if target and not skip else set()
    objects = [each for each in truth['annotations'] if not each['iscrowd']]
    errors = {kind: [] for kind in costs}
    for i in sorted(range(len(results)), key=lambda i: -results[i]['score']):
        mine = results[i]
        overlaps = {True: (0, None), False: (0, None)}  # with objects of its class, and of others
        for each in objects:
            if each['image_id'] == mine['image_id']:
                own = each['category_id'] == mine['category_id']
                overlaps[own] = max(
                    overlaps[own], (iou(mine['bbox'], each['bbox']), each['id']), key=lambda x: x[0]
                )
        (own, own_id), (other, other_id) = overlaps[True], overlaps[False]
        if i in right or i in ignored:
            continue
        if 0.1 <= own < 0.5:
            errors['localisation'].append((i, own_id))
        elif other >= 0.5:
            errors['classification'].append((i, other_id))
        elif own >= 0.5:
            errors['duplicate'].append((i, None))
        else:
            errors['background' if max(own, other) < 0.1 else 'both'].append((i, None))
    by_id = {each['id']: each for each in objects}
    covered = {target for kind in costs for _, target in errors[kind]}
    missed = by_id.keys() - found - covered
    present = ~np.isnan(coco_aps(truth, results, tmp_path)[0])
    before = np.nanmean(coco_aps(truth, results, tmp_path)[0])
    for kind, (number, cost) in costs.items():
        fixed, taken = dict(enumerate(results)), set(found)
        for i, target in errors[kind]:
            del fixed[i]
            if target and target not in taken:  # the others would be duplicates
                taken.add(target)
                box = {key: by_id[target][key] for key in ('bbox', 'category_id')}
                fixed[i] = {**results[i], **box}
        left = [each for each in truth['annotations'] if each['id'] not in missed]
        data = {**truth, 'annotations': left} if kind == 'missed' else truth
        after = np.nan_to_num(coco_aps(data, list(fixed.values()), tmp_path)[0][present]).mean()
        assert number == (len(missed) if kind == 'missed' else len(errors[kind])), kind
        assert cost == pytest.approx(after - before), kind
    assert sum(number > 0 for number, _ in costs.values()) >= 5


def test_calibration_is_the_mean_difference_of_score_and_share():
    scores = np.repeat([0.95, 0.55, 0.15], [20, 10, 10])
    correct = np.concatenate([np.arange(20) < 19, np.arange(10) < 2, np.arange(10) < 5])
    part = calibration_part(scores, correct)
    assert f'{100 * (20 * 0 + 10 * 0.35 + 10 * 0.35) / 40:.1f} %' in part.explanation
    (_, x, y), _ = part.charts[0]['series']
    assert (x, y) == (pytest.approx([15, 55, 95]), pytest.approx([50, 20, 95]))
