"""From a folder of labels to a trained model: what is decided, written and run."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_line import ROOT, fail, succeed
from mmengine.config import Config

from gcvit_mm.config import build_model
from gcvit_mm.errors import UserError
from gcvit_mm.fitting.config_text import config_text
from gcvit_mm.fitting.decisions import Decision, batch_sizes, decide, epochs_for, rate_for
from gcvit_mm.fitting.facts import Facts, find_facts, read_reports
from gcvit_mm.fitting.options import Options
from gcvit_mm.fitting.run import add_schedule, plan
from gcvit_mm.formats import Dataset, bring_in

SAMPLES = os.environ.get('GCVIT_MM_SAMPLES')
PHOTOS = Facts(
    'instances',
    ('cat', 'dog'),
    {'train': 1000, 'val': 100},
    long_sides=[640.0] * 1000,
    box_sides=[0.05, 0.1, 0.2, 0.4] * 500,
    rarity={'cat': 0.5, 'dog': 0.6},
    tops=(5.0, 3.0),
)


def decided(facts: Facts, **options: object) -> dict[str, object]:
    return {name: made.value for name, made in decide(facts, Options(**options)).items()}


def test_decisions_follow_the_data_and_the_machine():
    on_cpu, on_gpu = decided(PHOTOS), decided(replace(PHOTOS, gpus=1))
    assert (on_cpu['model'], on_cpu['size'], on_cpu['weights']) == ('nano', 512, 'scratch')
    assert (on_gpu['model'], on_gpu['size'], on_gpu['weights']) == ('xxtiny', 640, 'imagenet')
    assert decided(replace(PHOTOS, gpus=8, images={'train': 9000, 'val': 9}))['model'] == 'tiny'
    assert on_cpu['head'] == 'mask_rcnn'
    assert decided(replace(PHOTOS, task='detection'))['head'] == 'faster_rcnn'


def test_small_objects_get_larger_images_and_smaller_anchors():
    tiny = replace(PHOTOS, long_sides=[2000.0] * 1000, box_sides=[0.006, 0.01] * 1000)
    assert decided(tiny)['size'] > decided(PHOTOS)['size']
    assert decided(tiny)['anchors'] == 8
    assert decided(replace(PHOTOS, box_sides=[0.3, 0.5] * 1000))['anchors'] == 32


def test_objects_that_vanish_in_whole_images_are_seen_in_tiles():
    aerial = replace(PHOTOS, long_sides=[6000.0] * 100, box_sides=[0.002, 0.004] * 1000)
    assert decided(aerial)['tile'] == 512
    assert decided(replace(aerial, gpus=1))['tile'] == 1024
    assert decided(replace(aerial, box_sides=[0.01] * 100))['tile'] is None
    assert decided(aerial, tile=256)['tile'] == 256
    assert decided(PHOTOS)['tile'] is None


@pytest.mark.parametrize('tops', [None, (5.0, 0.1), (0.1, -4.0)])
def test_photos_are_never_turned_upside_down(tops):
    assert decided(replace(PHOTOS, tops=tops))['flips'] == 'horizontal'


def test_images_from_above_are_flipped_in_all_directions():
    assert decided(replace(PHOTOS, tops=(0.5, -1.0)))['flips'] == 'all'
    classes = replace(PHOTOS, task='classification', tops=(0.5, -1.0), box_sides=[])
    assert decided(classes)['flips'] == 'horizontal'  # a folder of digits or letters, say


def test_rare_classes_are_repeated():
    assert decided(PHOTOS)['rare'] == 0
    assert decided(replace(PHOTOS, rarity={'cat': 0.9, 'dog': 0.02}))['rare'] == 0.1


def test_each_decision_can_be_overridden():
    given = dict(model='xxtiny', size=320, flips='all', anchors=16, weights='scratch')
    own = decided(PHOTOS, **given)
    assert {name: own[name] for name in given} == given


def test_batches_are_tried_from_the_largest_to_one():
    sizes = [made.value for made in batch_sizes(replace(PHOTOS, gpus=1), Options())]
    assert sizes == [16, 8, 4, 2, 1]
    few = replace(PHOTOS, images={'train': 20, 'val': 5}, gpus=1)
    assert next(batch_sizes(few, Options())).value == 2
    assert [made.value for made in batch_sizes(PHOTOS, Options(batch=3))] == [3]


def test_the_learning_rate_grows_with_the_square_root_of_the_batch():
    rates = {}
    for batch in (8, 32):
        made = decide(PHOTOS, Options()) | {'batch': Decision(batch, '')}
        rates[batch] = rate_for(PHOTOS, made, Options()).value
    assert rates[32] == pytest.approx(2 * rates[8])


@pytest.mark.parametrize('minutes', [3, 10, 60])
def test_a_training_fits_into_its_minutes(minutes):
    step, validation, steps = 0.5, 20.0, 100
    count = epochs_for(PHOTOS, steps, (step, validation), Options(minutes=minutes)).value
    interval = -(-count // 15)
    seconds = count * steps * step + -(-count // interval) * validation
    assert 0.6 * 60 * minutes < seconds <= 60 * minutes


def test_too_few_minutes_are_refused_before_the_training():
    with pytest.raises(UserError, match=r'--minutes 1: an epoch .* takes 2.0 minutes'):
        epochs_for(PHOTOS, 100, (1.0, 20.0), Options(minutes=1))


@pytest.mark.parametrize(
    'options',
    [
        {'minutes': -1},
        {'minutes': float('nan')},
        {'size': 0},
        {'model': 'huge'},
        {'head': 'upernet'},
        {'weights': 'nowhere.pth'},
        {'minutes': 1, 'epochs': 1},
        {'val': 1.5},
        {'batch': 'two'},
        {'gpus': 99},
        {'seed': -1},
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(options, tiny_shapes, tmp_path):
    with pytest.raises(UserError):
        plan(tiny_shapes, tmp_path / 'new', Options(**options))
    assert not (tmp_path / 'new.py').exists()


@pytest.fixture(scope='module')
def fitted(tiny_shapes, tmp_path_factory) -> tuple[Path, str]:
    work = tmp_path_factory.mktemp('fit') / 'shapes'
    arguments = [tiny_shapes, '--work-dir', work, '--epochs', 1, '--batch', 4]
    return work, succeed('fit.py', *arguments)


def test_a_folder_becomes_a_trained_model_with_its_report(fitted):
    work, output = fitted
    for name in ('report.html', 'browse/index.html', 'validation.segm.json', 'last_checkpoint'):
        assert (work / name).is_file(), name
    (best,) = work.glob('best_coco_segm_mAP_*.pth')
    assert f'after epoch 1, {best}' in output
    assert f'gcvit-mm infer {work} IMAGES' in output


def test_the_terminal_shows_a_screen_before_the_first_loss(fitted):
    _, output = fitted
    train = output.split('decisions, written to')[1].split('Epoch(train)')[0]
    assert len(train.splitlines()) < 50, train


def test_the_config_says_each_decision_and_its_reason(fitted):
    work, _ = fitted
    text = work.with_suffix('.py').read_text()
    for reason in ('# Model nano: there is no GPU.', '# Epochs 1: as given.', '# Batches of 4: '):
        assert reason in text
    assert "_base_ = ['gcvit_mm::_base_/mask_rcnn_gcvit_nano.py'" in text
    assert text.count('disk') == 1, 'classes are written once'


def test_the_config_is_an_ordinary_one_in_any_folder(fitted, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(fitted[0].with_suffix('.py'))
    assert cfg.train_dataloader.dataset.metainfo.classes == ('disk', 'box', 'star')
    assert build_model(cfg, meta=True).roi_head.mask_head.num_classes == 3


def test_the_same_command_resumes_and_another_is_refused(fitted, tiny_shapes):
    work, _ = fitted
    arguments = [tiny_shapes, '--work-dir', work, '--epochs', 1]
    assert 'was not written by this command' in fail('fit.py', *arguments, '--batch', 2)
    output = succeed('fit.py', *arguments, '--batch', 4)
    assert 'its decisions are used' in output
    assert 'Epoch(train)' not in output


@pytest.mark.parametrize(
    'name', ['a"""b', "it's", 'back\\slash', 'new\nline', '{{ $HOME:x }}', 'ü ß']
)
def test_names_of_folders_and_classes_are_text_in_the_config(name, tmp_path):
    data = Dataset(tmp_path, tmp_path / name, '', 'detection', (name,), ((1, 2, 3),), {})
    facts = replace(PHOTOS, task='detection', classes=(name,))
    made = decide(facts, Options(weights='scratch')) | {'batch': Decision(2, name)}
    made['lr'] = rate_for(facts, made, Options())
    add_schedule(made, Decision(1, name), 1)
    config = tmp_path / 'config.py'
    config.write_text(config_text(data, facts, made, f'gcvit-mm fit {name}'))
    cfg = Config.fromfile(config)
    assert cfg.metainfo.classes == (name,)
    assert cfg.train_dataloader.dataset.data_prefix.img == str(tmp_path / name)


def paint(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(path), noise)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['detection', 'segmentation', 'classification'])
def test_each_task_is_trained_and_evaluated(task, tiny_shapes, tmp_path):
    source = tmp_path / 'data'
    if task == 'classification':
        for number in range(24):
            paint(source / ('cat', 'dog')[number % 2] / f'{number}.png', number)
    else:
        shutil.copytree(tiny_shapes, source)
    output = succeed('fit.py', source, '--work-dir', tmp_path / 'w', '--task', task, '--epochs', 2)
    assert 'best: ' in output
    assert (tmp_path / 'w/report.html').is_file()


@pytest.mark.slow
def test_a_model_of_yours_is_trained_on_for_other_classes(fitted, tiny_shapes, tmp_path):
    source = tmp_path / 'data'
    shutil.copytree(tiny_shapes, source)
    for file in source.rglob('instances_*.json'):
        labels = json.loads(file.read_text())
        labels['categories'] = [{'id': 1, 'name': 'thing'}]
        labels['annotations'] = [label | {'category_id': 1} for label in labels['annotations']]
        file.write_text(json.dumps(labels))
    (best,) = fitted[0].glob('best_coco_segm_mAP_*.pth')
    work = tmp_path / 'w'
    output = succeed('fit.py', source, '--work-dir', work, '--from', best, '--epochs', 1)
    (line,) = [line for line in output.splitlines() if 'start anew' in line]
    assert str(best) in line and 'fc_cls.weight' in line and 'backbone' not in line
    assert 'size mismatch' not in output


def test_data_with_errors_are_refused_before_a_config_is_written(tmp_path):
    paint(tmp_path / 'data/cat/1.png', 1)
    (tmp_path / 'data/cat/2.png').write_bytes(b'no image')
    (tmp_path / 'data/dog').mkdir()
    assert 'error' in fail('fit.py', tmp_path / 'data', '--work-dir', tmp_path / 'w')
    assert not (tmp_path / 'w.py').exists()


@pytest.mark.parametrize('folder', ['nothing', 'empty'])
def test_a_folder_without_images_is_one_line(folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert folder in fail('fit.py', tmp_path / folder)


@pytest.mark.skipif(not SAMPLES, reason='GCVIT_MM_SAMPLES is not set')
@pytest.mark.parametrize(
    ('folder', 'flips'), [('nuclei256', 'all'), ('coco_mini320', 'horizontal')]
)
def test_flips_of_real_images(folder, flips, tmp_path):
    data = bring_in(Path(SAMPLES, folder), tmp_path / 'data')
    facts = find_facts(data, read_reports(data), 0)
    assert decided(facts)['flips'] == flips


def test_fit_is_offered_in_python():
    import gcvit_mm

    assert gcvit_mm.fit.__module__ == 'gcvit_mm.fitting.run'
    assert (ROOT / 'tools/fit.py').is_file()
