"""The page of a training: its figures are those of the evaluation, and it works in a browser."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import ROOT, VAL_IMAGES, succeed
from PIL import Image
from pycocotools.coco import COCO
from test_evaluation import (
    CLASSIFIER,
    ITEMS,
    coco_metrics,
    coco_samples,
    detections,
    write_random_model,
)

from gcvit_mm import Predictor
from gcvit_mm.config import datasets_of
from gcvit_mm.datasets.shapes import make_shapes
from gcvit_mm.drawing.palette import class_colors
from gcvit_mm.errors import UserError
from gcvit_mm.evaluation.metrics import make_countable
from gcvit_mm.report.detection import _Drawing, match
from gcvit_mm.report.evaluation import Confusion, Evaluation, extremes
from gcvit_mm.report.page import render
from gcvit_mm.report.pictures import as_hex
from gcvit_mm.report.thresholds import best_threshold
from gcvit_mm.report.write import evaluate, write_report
from gcvit_mm.work_dir import read_run

pytest_plugins = ['browser']

EVIL = '<script>document.title="broken into"</script>'
EVIL_FILE = '"><img src=x onerror=alert(1)>.jpg'


# --- Detection --------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def detection(trained, tmp_path_factory) -> SimpleNamespace:
    """A work directory with good predictions, of a class and a file that are named like code."""
    folder = tmp_path_factory.mktemp('detection')
    data = make_shapes(folder / 'data', train=1, val=12, size=96)
    ann_file = data / 'annotations/instances_validation.json'
    for file in ann_file.parent.glob('instances_*.json'):
        content = json.loads(file.read_text())
        content['categories'][0]['name'] = EVIL
        file.write_text(json.dumps(content))
    content = json.loads(ann_file.read_text())
    first = content['images'][0]
    images = data / 'images/validation'
    (images / first['file_name']).rename(images / EVIL_FILE)
    first['file_name'] = EVIL_FILE
    ann_file.write_text(json.dumps(content))
    work_dir = Path(shutil.copytree(trained.work_dir, folder / 'work'))
    (config,) = work_dir.glob('*.py')
    text = config.read_text().replace(str(trained.data), str(data)).replace("'disk'", repr(EVIL))
    config.write_text(text)
    (log,) = work_dir.glob('*/*.log')
    log.write_text(log.read_text().replace('attention: sdpa', f'attention: {EVIL}'))

    samples = list(coco_samples(content, detections(COCO(str(ann_file)))))
    prefix = work_dir / 'found [1] $x'
    metrics = {
        kind: coco_metrics(
            'mask_rcnn_gcvit_nano_shapes.py', ann_file, samples,
            metric=kind, outfile_prefix=str(prefix), classwise=True,
        )
        for kind in ('bbox', 'segm')
    }  # fmt: skip
    page = folder / 'page.html'
    run = read_run(work_dir)
    half = folder / 'half'  # what a worse training finds
    for kind in ('bbox', 'segm'):
        results = json.loads(Path(f'{prefix}.{kind}.json').read_text())
        Path(f'{half}.{kind}.json').write_text(json.dumps(results[::2]))
    notes = write_report(run, page, str(prefix), (), (run, str(half)), str(folder / 'charts'))
    assert notes == []
    return SimpleNamespace(
        work_dir=work_dir, prefix=str(prefix), metrics=metrics, page=page, truth=ann_file
    )


def column(page, kind: str, name: str) -> list[str]:
    """What stands in a column of the table of classes."""
    table = page.locator(f'.of-kind[data-kind={kind}] table')
    names = [head.removesuffix('\n') for head in table.locator('thead th').all_inner_texts()]
    place = [re.sub(r'\W+$', '', head) for head in names].index(name)
    return [
        row.locator('th, td').nth(place).inner_text() for row in table.locator('tbody tr').all()
    ]


def test_figures_of_detections_are_those_of_the_evaluator(detection):
    evaluation = evaluate(read_run(detection.work_dir), detection.prefix)
    for name, figure in evaluation.metrics.items():
        expected = detection.metrics[name[5:9]][name]
        assert figure == pytest.approx(expected, abs=0.0006), name
    assert {f'coco/{kind}_{item}' for kind in ('bbox', 'segm') for item in ITEMS[:6]} == set(
        evaluation.metrics
    )
    assert 0.1 < evaluation.metrics['coco/bbox_mAP'] < evaluation.metrics['coco/bbox_mAP_50'] < 0.9
    for table in evaluation.tables:
        heads = [head.name for head in table.columns]
        for row in table.rows:
            of_class = dict(zip(heads, row, strict=True))
            expected = detection.metrics[table.kind][f'coco/{of_class["class"]}_precision']
            assert of_class['AP'] == pytest.approx(100 * expected, abs=0.06)
        # The area below the curve is the AP, and the mean of the classes is the AP of all.
        curve = next(c for c in evaluation.curves if (c.kind, c.iou) == (table.kind, 0.5))
        figure = 100 * evaluation.metrics[f'coco/{table.kind}_mAP_50']
        assert np.mean(curve.precision['']) == pytest.approx(figure, abs=0.1)


def test_every_object_and_sure_prediction_is_in_the_confusion_matrix_once(detection):
    evaluation = evaluate(read_run(detection.work_dir), detection.prefix)
    counts, (table, _) = evaluation.confusion.counts, evaluation.tables
    assert counts[:-1].sum(1).tolist() == [row[1] for row in table.rows]
    results = json.loads(Path(f'{detection.prefix}.bbox.json').read_text())
    sure = sum(result['score'] >= 0.3 for result in results)
    assert 0.8 * sure < counts[:, :-1].sum() <= sure  # some lie in crowds
    right = counts.diagonal()[:-1]
    assert (right > counts[:-1, :-1].sum(1) - right).all()


def test_a_class_has_one_color_in_overlays_reports_and_ground_truth(detection):
    run = read_run(detection.work_dir)
    predictor = Predictor(detection.work_dir, device='cpu')
    evaluation = evaluate(run, detection.prefix)
    classes = [row[0] for row in evaluation.tables[0].rows]
    (dataset,) = datasets_of(run.cfg.train_dataloader)
    assert class_colors(run.cfg, dataset, classes) == predictor.palette
    for picture in (*evaluation.worst, *evaluation.best):
        for objects in (picture.truth, picture.predicted):
            for one in objects:  # the last of a class is the first that was coloured
                color = predictor.palette[classes.index(one.label)]
                last = [other for other in objects if other.label == one.label][-1]
                assert last.color == as_hex(color)
            of_class = [one.color for one in objects if one.label == classes[0]]
            assert len(set(of_class)) == len(of_class)


def test_the_page_of_detections_works_in_a_browser(detection, visit, tmp_path):
    opened = visit(detection.page.as_uri(), viewport=dict(width=1400, height=900))
    page = opened.page
    page.screenshot(path=tmp_path / 'wide.png', full_page=True)

    names, values = (page.locator(f'.tiles {tag}').all_inner_texts() for tag in ('dt', 'dd'))
    tiles = dict(zip(names, values, strict=True))
    for name, words in {'bbox_mAP': 'box AP', 'segm_mAP_50': 'mask AP50'}.items():
        assert tiles[words] == f'{100 * detection.metrics[name[:4]][f"coco/{name}"]:.1f}'

    # What is named like code is text, and nothing of it ran.
    assert page.title() == 'mask_rcnn_gcvit_nano_shapes: report'
    assert EVIL in column(page, 'bbox', 'class')
    assert EVIL_FILE in page.locator('h4').all_inner_texts()
    assert EVIL in page.locator('.matrix thead').inner_text()
    page.get_by_text('Environment and versions').click()
    assert page.get_by_text(EVIL, exact=True).first.is_visible()

    head = page.locator('[data-kind=bbox] thead').get_by_text('AP50')
    for order in (True, False):  # the best first, then the worst
        head.click()
        figures = list(map(float, column(page, 'bbox', 'AP50')))
        assert len(set(figures)) > 1
        assert figures == sorted(figures, reverse=order)
    assert page.locator('[aria-sort=ascending]').count() == 1

    curves = page.locator('[data-chart=curves]')
    drawn = curves.locator('polyline').first.get_attribute('points')
    page.locator('#curve-class').select_option(EVIL)
    of_class = curves.locator('polyline').first.get_attribute('points')
    page.get_by_text('Masks', exact=True).click()
    assert len({drawn, of_class, curves.locator('polyline').first.get_attribute('points')}) == 3
    assert page.locator('[data-kind=segm]').is_visible()
    assert not page.locator('[data-kind=bbox]').is_visible()
    curves.locator('svg').press('ArrowRight')
    assert curves.locator('.at').inner_text() == 'recall 0'
    assert re.fullmatch(r'IoU 0\.50 [\d.]+', curves.locator('.legend button').first.inner_text())
    curves.locator('.legend button').first.click()
    assert curves.locator('polyline').count() == 1

    page.locator('#as-counts').check()
    cells = page.locator('.matrix tbody tr').first.locator('td').all_inner_texts()
    assert sum(int(cell) for cell in cells[:-1]) == int(cells[-1])

    marks = page.locator('.predicted .object')
    assert marks.count() > page.locator('.predicted .object:visible').count() > 0
    page.locator('#score').fill('0.05')
    assert page.locator('.predicted .object.below').count() == 0
    page.locator('#score').fill('1')
    scores = [float(mark.get_attribute('data-score')) for mark in marks.all()]
    assert page.locator('.predicted .object.below').count() == sum(score < 1 for score in scores)
    page.locator('#show-truth').uncheck()
    assert not page.locator('.truth .object').first.is_visible()

    light = page.evaluate('getComputedStyle(document.body).backgroundColor')
    page.locator('#theme').click()
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') != light
    assert page.locator('#theme').inner_text() == 'Light'

    assert opened.requests == []
    assert opened.problems == []


def rows_below(page, title: str) -> dict[str, list[str]]:
    """The cells of the first table of a part of the analysis, by its first column."""
    part = page.locator(f'#analysis h3:text-is("{title}") ~ .part').first
    rows = part.locator('tbody tr').all()
    cells = [row.locator('th, td').all_inner_texts() for row in rows]
    return {name: values for name, *values in cells}


def test_the_analysis_of_detections_is_on_the_page(detection, visit):
    page = visit(detection.page.as_uri()).page
    score, f1 = best_threshold(detection.truth, Path(f'{detection.prefix}.segm.json'))
    every = rows_below(page, 'Score threshold')
    assert every['all classes'][0] == f'{score:.2f}'
    assert every['all classes'][3] == f'{100 * f1:.1f}'
    assert list(every)[1:] == [EVIL, 'box', 'star']

    ours = {
        f'{name} AP{end.removeprefix("_")}': 100 * detection.metrics[kind][f'coco/{kind}_mAP{end}']
        for kind, name in dict(bbox='box', segm='mask').items()
        for end in ('', '_50')
    }
    intervals, compared = rows_below(page, 'Intervals'), rows_below(page, 'Comparison')
    assert list(compared) == list(ours)
    for name, figure in ours.items():
        measured, low, high = map(float, intervals[name])
        assert measured == pytest.approx(figure, abs=0.11)
        assert low < measured < high
        assert compared[name][0] == intervals[name][0]
        this, other, difference, low, high = map(float, compared[name])
        assert difference == pytest.approx(other - this, abs=0.11)
        assert low <= difference <= high
    errors = rows_below(page, 'Kinds of errors')
    wrong = json.loads(Path(f'{detection.prefix}.segm.json').read_text())
    assert 0 < sum(int(row[0]) for kind, row in errors.items() if kind != 'missed') < len(wrong)
    assert float(errors['localisation'][1]) > 1

    truth = json.loads((detection.truth.parent / 'instances_training.json').read_text())
    training = rows_below(page, 'Training labels')
    counted = sum(int(row[0]) for row in training.values())
    assert counted == sum(not each['iscrowd'] for each in truth['annotations'])

    matrix = page.locator('.matrix')
    assert 'background' not in page.locator('#confusion').inner_text()
    assert matrix.locator('thead').inner_text().split()[-2:] == ['missed', 'objects']
    assert matrix.locator('tbody th').last.inner_text() == 'false positives'

    titles = page.locator('#images h3').all_inner_texts()
    assert titles[:2] == ['Worst', 'Best']
    assert any('of another class' in title for title in titles)
    assert any('training' in title for title in titles)
    assert 'labelled as' in page.locator('#images').inner_text()
    charts = {path.stem for path in (detection.truth.parents[2] / 'charts').glob('*.svg')}
    shown = {each.get_attribute('data-chart') for each in page.locator('.chart').all()} - {None}
    assert charts == (shown - {'curves'}) | {'precision_bbox', 'precision_segm'}


def test_trainings_with_other_test_images_are_not_compared(detection, tmp_path):
    run = read_run(detection.work_dir)
    other = Path(shutil.copytree(detection.work_dir, tmp_path / 'other'))
    (config,) = other.glob('*.py')
    data = make_shapes(tmp_path / 'data', train=1, val=2, size=64)
    text = config.read_text().replace(str(detection.truth.parents[1]), str(data))
    config.write_text(text.replace(repr(EVIL), "'disk'"))
    for kind in ('bbox', 'segm'):
        (other / f'few.{kind}.json').write_text('[]')
    with pytest.raises(UserError, match=r'few.* other images'):
        write_report(
            run, tmp_path / 'page.html', detection.prefix, (), (read_run(other), f'{other}/few')
        )
    assert not (tmp_path / 'page.html').exists()


def test_the_page_fits_a_telephone_in_the_dark_and_works_without_scripts(
    detection, visit, tmp_path
):
    phone = dict(viewport=dict(width=360, height=740), color_scheme='dark')
    opened = visit(detection.page.as_uri(), **phone)
    opened.page.screenshot(path=tmp_path / 'narrow.png', full_page=True)
    assert opened.page.evaluate('document.documentElement.scrollWidth') == 360
    assert not opened.page.get_by_text('need JavaScript').is_visible()
    assert opened.page.locator('#theme').inner_text() == 'Light'  # what it changes to
    assert opened.problems == []
    plain = visit(detection.page.as_uri(), java_script_enabled=False, **phone)
    assert plain.page.get_by_text('need JavaScript').is_visible()
    assert column(plain.page, 'bbox', 'objects')
    assert plain.page.locator('.predicted .object:visible').count() > 0


def test_a_page_runs_no_script_but_its_own(detection, visit, tmp_path):
    damaged = tmp_path / 'damaged.html'
    injected = f'{EVIL}<img src="http://127.0.0.1:9/x.png"></main>'
    damaged.write_text(detection.page.read_text().replace('</main>', injected))
    opened = visit(damaged.as_uri())
    assert opened.page.title() != 'broken into'
    assert sum('Content Security Policy' in problem for problem in opened.problems) >= 2


def test_predictions_take_objects_of_their_own_class_first():
    def box(x, category, **more):
        return dict(bbox=[x, 0, 10, 10], category_id=category, **more)

    objects = [box(0, 1), box(2, 2), box(50, 1, iscrowd=1), box(90, 1)]
    found = [
        box(2, 1, score=0.9),  # overlaps the second better, but is of the first's class
        box(2, 1, score=0.5),  # takes the second, of another class, as nothing else is left
        box(51, 2, score=0.8),  # in a crowd
        box(70, 1, score=0.7),  # on nothing
    ]
    matches = match(objects, found)
    assert matches.pairs == [(0, 0), (1, 1)]
    assert (matches.missed, matches.false_positives) == ([3], [3])


def test_no_image_is_both_best_and_worst():
    for count in (0, 1, 2, 3, 15, 16, 40):
        worst, best = extremes(range(count))
        assert worst == list(range(min(8, (count + 1) // 2)))
        assert best == sorted(best, reverse=True)
        assert len(worst) + len(best) == min(16, count)
        assert not set(worst) & set(best)


# --- Label maps and classes -------------------------------------------------------------------


def test_the_page_of_label_maps_has_the_figures_of_the_evaluation(tiny_shapes, visit, tmp_path):
    config = 'upernet_gcvit_nano_shapes.py'
    checkpoint = write_random_model(config, tmp_path / 'model.pth')
    work_dir = tmp_path / 'work'
    succeed(
        'test.py', f'configs/{config}', checkpoint, '--work-dir', work_dir,
        '--out', work_dir / 'found', '--cfg-options',
        f'test_dataloader.dataset.data_root={tiny_shapes}', 'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    )  # fmt: skip
    run, metrics = read_run(work_dir), json.loads((work_dir / 'found.metrics.json').read_text())
    evaluation = evaluate(run, str(work_dir / 'found'))
    assert evaluation.metrics == pytest.approx(metrics, abs=0.0051)
    assert evaluation.images == VAL_IMAGES
    assert evaluation.confusion.counts.sum() == VAL_IMAGES * 64 * 64
    (note,) = write_report(run, tmp_path / 'page.html', str(work_dir / 'found'))
    assert 'There are no curves' in note

    opened = visit((tmp_path / 'page.html').as_uri())
    page = opened.page
    page.screenshot(path=tmp_path / 'page.png', full_page=True)
    assert page.get_by_role('note').inner_text() == note
    assert page.locator('.tiles dd').first.inner_text() == f'{metrics["mIoU"]:.1f}'
    measured, low, high = map(float, rows_below(page, 'Intervals')['mIoU'])
    assert low <= measured <= high
    assert measured == pytest.approx(metrics['mIoU'], abs=0.06)
    assert page.locator('.picture').count() == VAL_IMAGES
    share = 'Number(getComputedStyle(document.querySelector(".map")).opacity)'
    assert page.evaluate(share) == pytest.approx(0.6)
    page.locator('#opacity').fill('100')
    assert page.evaluate(share) == 1
    loaded = page.evaluate(
        'Promise.all([...document.querySelectorAll("image")].map(image => {'
        ' const copy = new Image(); copy.src = image.href.baseVal;'
        ' return copy.decode().then(() => copy.naturalWidth); }))'
    )
    assert loaded == [64] * 3 * VAL_IMAGES
    assert (opened.requests, opened.problems) == ([], [])


@pytest.mark.slow
def test_the_page_of_classes_has_the_figures_of_the_evaluation(visit, tmp_path):
    rng = np.random.default_rng(0)
    for name in ('a', 'b', 'c', 'd', 'e', 'f', '<b>g'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (80, 70, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f'data/{name}/{i}.png')
    config, work_dir = tmp_path / 'config.py', tmp_path / 'work'
    config.write_text(CLASSIFIER.format(configs=ROOT / 'configs', data=tmp_path / 'data'))
    checkpoint = write_random_model(config, tmp_path / 'model.pth')
    succeed('test.py', config, checkpoint, '--work-dir', work_dir, '--out', work_dir / 'found')
    run, metrics = read_run(work_dir), json.loads((work_dir / 'found.metrics.json').read_text())
    evaluation = evaluate(run, str(work_dir / 'found'))
    assert evaluation.metrics == pytest.approx(metrics, abs=0.001)
    write_report(run, tmp_path / 'page.html', str(work_dir / 'found'))
    opened = visit((tmp_path / 'page.html').as_uri())
    opened.page.screenshot(path=tmp_path / 'page.png', full_page=True)
    top1 = rows_below(opened.page, 'Intervals')['top-1 accuracy']
    assert float(top1[0]) == pytest.approx(metrics['accuracy/top1'], abs=0.06)
    assert opened.page.locator('[data-chart=calibration] polyline').count() == 2
    assert '<b>g' in opened.page.locator('.sortable').first.inner_text()
    assert opened.page.locator('.guesses').count() == opened.page.locator('.picture').count() > 0
    assert (opened.requests, opened.problems) == ([], [])


def test_false_positives_are_no_share_of_a_class(visit, detection, tmp_path):
    counts = np.array([[3, 1], [7, 0]])  # one class: a missed object, seven false positives
    confusion = Confusion(counts, ['person', 'background'], 'objects', '', background=True)
    assert confusion.pairs() == []  # neither is a confusion of two classes
    page = tmp_path / 'page.html'
    evaluation = Evaluation('detection', 1, confusion=confusion)
    page.write_text(render(read_run(detection.work_dir), evaluation, None, []))
    opened = visit(page.as_uri())
    rows = opened.page.locator('.matrix tbody tr').all_inner_texts()
    assert [row.split() for row in rows] == [
        ['person', '75.0', '25.0', '4'],
        ['false', 'positives', '7', '7'],
    ]


def test_clicks_before_a_polygon_are_not_drawn():
    image = dict(height=64, width=64)
    square = [6, 8, 26, 8, 26, 30, 6, 30]
    truth = COCO()
    masks = [square], [[6, 8], square, [1, 2, 3, 4]], [[6, 8]]
    truth.dataset = dict(annotations=[dict(image_id=1, segmentation=mask) for mask in masks])
    make_countable(truth)
    outlines = [_Drawing._outline(a['segmentation'], image) for a in truth.dataset['annotations']]
    assert outlines[0].startswith('M') and outlines == [outlines[0], outlines[0], '']


def test_more_classes_than_a_matrix_can_show_come_as_pairs(visit, detection, tmp_path):
    classes = 1000
    confusion = np.eye(classes, dtype=np.int64) * 9
    confusion[7, 8], confusion[500, 1] = 3, 4
    names = [f'class {i}' for i in range(classes)]
    evaluation = Evaluation(
        'classification', 1, confusion=Confusion(confusion, names, 'images', '')
    )
    page = tmp_path / 'page.html'
    page.write_text(render(read_run(detection.work_dir), evaluation, None, []))
    opened = visit(page.as_uri())
    assert opened.page.locator('.matrix').count() == 0
    rows = opened.page.locator('#confusion tbody tr').all_inner_texts()
    assert [row.split('\t')[:3] for row in rows] == [
        ['class 500', 'class 1', '4'],
        ['class 7', 'class 8', '3'],
    ]


# --- The log ----------------------------------------------------------------------------------


def write_start(work_dir, name, entries, begin, end):
    folder = work_dir / name
    (folder / 'vis_data').mkdir(parents=True)
    lines = [json.dumps(entry) for entry in entries]
    (folder / 'vis_data' / 'scalars.json').write_text('\n'.join([*lines, '{"loss": 0.']))  # killed
    (folder / f'{name}.log').write_text(
        f'2026/01/01 {begin} - mmengine - INFO - a\n2026/01/01 {end} - mmengine - INFO - b\n'
    )


def test_starts_of_a_training_become_one_curve(tmp_path):
    (tmp_path / 'config.py').write_text("default_scope = 'mmdet'\n")

    def steps(first, last, loss):
        return [dict(loss=loss, iter=i, step=i, epoch=i // 10) for i in range(first, last + 1, 10)]

    def validation(epoch, figure):
        return {'coco/bbox_mAP': figure, 'step': epoch}

    first = [*steps(10, 50, 3.0), validation(5, 0.1), *steps(60, 70, 3.0), validation(7, 0.2)]
    write_start(tmp_path, '20260101_000000', first, '00:00:00', '00:10:00')
    # It went on from step 50.
    second = [*steps(60, 80, 2.0), validation(8, 0.3)]
    write_start(tmp_path, '20260101_010000', second, '01:00:00', '01:20:00')
    run = read_run(tmp_path)
    assert [(entry['step'], entry['loss']) for entry in run.steps] == [
        *((step, 3.0) for step in (10, 20, 30, 40, 50)),
        *((step, 2.0) for step in (60, 70, 80)),
    ]
    assert [entry['step'] for entry in run.validations] == [5, 8]
    assert run.seconds == 30 * 60

    # Another training in the same folder, from its first step, is the only one that counts.
    write_start(tmp_path, '20260101_020000', steps(10, 30, 1.0), '02:00:00', '02:01:00')
    run = read_run(tmp_path)
    assert [entry['step'] for entry in run.steps] == [10, 20, 30]
    assert (run.validations, run.seconds, run.started.hour) == ([], 60, 2)


def test_the_length_counts_steps_after_the_last_logged_one(tmp_path):
    (tmp_path / 'config.py').write_text("default_scope = 'mmdet'\n")
    entries = [dict(loss=1.0, iter=i, step=i, epoch=1 + i // 50) for i in (20, 40, 70, 90)]
    write_start(tmp_path, '20260101_000000', entries, '00:00:00', '00:10:00')
    log = tmp_path / '20260101_000000/20260101_000000.log'
    lines = (
        'Epoch(train) [1][40/50] x\nSaving checkpoint at 1 epochs\nEpoch(train)  [2][40/50]  x\n'
    )
    for more, length in {
        '': (1, 100),  # the second epoch is not known to be finished
        'Saving checkpoint at 2 epochs\n': (2, 100),
        'Epoch(val) [2][5/5] x\n': (2, 100),
        'Saving checkpoint at 3 epochs\n': (3, 150),  # no step of the third epoch is logged
    }.items():
        log.write_text(lines + more)
        run = read_run(tmp_path)
        assert (run.epoch, max(run.step, run.steps[-1]['step'])) == (length if more else (1, 90))
    log.write_text('Iter(train) [ 90/100] x\nSaving checkpoint at 100 iterations\n')
    assert read_run(tmp_path).step == 100


# --- The command ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_without_predictions_is_evaluated_first(trained, tmp_path):
    work_dir = Path(shutil.copytree(trained.work_dir, tmp_path / 'work'))
    output = succeed('report.py', work_dir)
    assert f'evaluating {work_dir}/epoch_1.pth' in output
    metrics = json.loads((work_dir / 'predictions.metrics.json').read_text())
    page = (work_dir / 'report.html').read_text()
    value = 100 * metrics['coco/bbox_mAP_50']
    assert f'<dt>box AP50</dt><dd>{value:.1f}</dd>' in page
    assert len(page) < 5e6
    # Training has gone on since.
    (work_dir / 'epoch_1.pth').touch()
    output = succeed('report.py', work_dir)
    assert f'The predictions {work_dir}/predictions.* are older than {work_dir}/epoch_1' in output


def test_without_data_the_page_says_what_is_missing(trained, tmp_path):
    work_dir = Path(shutil.copytree(trained.work_dir, tmp_path / 'work'))
    (config,) = work_dir.glob('*.py')
    config.write_text(config.read_text().replace(str(trained.data), '/no such data'))
    output = succeed('report.py', work_dir, '--out', tmp_path / 'page.html')
    note = 'There are no predictions, and the model cannot be evaluated: data folder /no such data'
    assert note in output
    page = (tmp_path / 'page.html').read_text()
    assert note in page
    assert 'data-chart="loss"' in page
    # With predictions of earlier the figures are those that were measured then.
    for end in ('bbox.json', 'metrics.json'):
        (work_dir / f'old.{end}').write_text('{"coco/bbox_mAP": 0.123}')
    (note,) = write_report(read_run(work_dir), tmp_path / 'old.html', str(work_dir / 'old'))
    assert 'not compared with the ground truth, which is missing: data folder /no such' in note
    assert '<dt>box AP</dt><dd>12.3</dd>' in (tmp_path / 'old.html').read_text()


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('absent', None, 'there are no predictions .*absent.bbox.json: give the PREFIX'),
        ('cut', '[{', r'cut\.bbox\.json cannot be read as JSON'),
        ('list', '{}', r'list\.bbox\.json .* COCO results: give the PREFIX'),
        ('other', '[{"image_id": 98765}]', r'1 images that are not in the annotations \(98765 '),
    ],
)
def test_predictions_that_do_not_fit_are_named(name, content, message, detection, tmp_path):
    if content:
        (tmp_path / f'{name}.bbox.json').write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(read_run(detection.work_dir), tmp_path / 'page.html', str(tmp_path / name))
    assert not (tmp_path / 'page.html').exists()


def test_a_page_that_cannot_be_written_leaves_nothing(detection, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'file/page\.html cannot be written'):
        write_report(read_run(detection.work_dir), tmp_path / 'file/page.html', None)
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_what_is_not_the_folder_of_a_training_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'work directory .*absent does not exist'):
        read_run(tmp_path / 'absent')
    with pytest.raises(UserError, match=r'has no config .*--work-dir'):
        read_run(tmp_path)
