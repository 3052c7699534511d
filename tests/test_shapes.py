"""The shapes data set: the same bytes every time, whole or not used, and readable by both sides."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from gcvit_mm.datasets import shapes
from gcvit_mm.datasets.shapes import CLASSES, PALETTE, SPLITS, make_shapes
from gcvit_mm.errors import UserError

TOOL = Path(__file__).resolve().parents[1] / 'tools' / 'make_shapes.py'
# The smallest splits that hold both an image without objects and one with a crowd.
SMALL = {'train': 30, 'val': 20}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Give a finished folder, which tests only read."""
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'small', **SMALL)


@pytest.fixture(scope='module', params=SPLITS)
def split(request, folder):
    """Give each split of the finished folder as (name, COCO index)."""
    return request.param, COCO(folder / 'annotations' / f'instances_{request.param}.json')


def files(root):
    """Map the visible files of a folder to their bytes; a killed run may leave hidden ones."""
    found = (p for p in sorted(root.rglob('*')) if p.is_file() and p.name[0] != '.')
    return {str(p.relative_to(root)): p.read_bytes() for p in found}


def times(root):
    return {p: p.stat().st_mtime_ns for p in root.rglob('*')}


def start_tool(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd='/'
    )


def arguments(train, val):
    return '--train', train, '--val', val


def read_map(root, split_name, image):
    path = root / 'annotations' / split_name / image['file_name'].replace('.jpg', '.png')
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


# The same bytes, whatever happens.


def test_same_seed_gives_the_same_bytes(folder, tmp_path):
    assert files(make_shapes(tmp_path, **SMALL)) == files(folder)


def test_another_seed_and_another_split_give_other_scenes(folder, tmp_path):
    other, first = files(make_shapes(tmp_path, **SMALL, seed=1)), files(folder)
    images = [name for name in first if name.endswith('.jpg')]
    assert len(images) == SMALL['train'] + SMALL['val']
    assert not any(first[name] == other[name] for name in images)
    assert first['images/training/000000.jpg'] != first['images/validation/000000.jpg']


def test_a_longer_set_starts_with_the_shorter_one(folder, tmp_path):
    longer, first = files(make_shapes(tmp_path, train=32, val=20)), files(folder)
    images = [name for name in first if name.startswith('images/')]
    assert all(longer[name] == first[name] for name in images)


def test_a_killed_run_is_finished_by_the_next(tmp_path):
    whole = files(make_shapes(tmp_path / 'whole', train=200, val=20))
    root = tmp_path / 'killed'
    process = start_tool(root, *arguments(200, 20))
    deadline = time.monotonic() + 60
    while not (root / 'images/training/000020.jpg').exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL

    partial = files(root)
    assert 'shapes.json' not in partial
    assert 'images/training/000020.jpg' in partial
    assert len(partial) < len(whole)
    assert all(whole[name] == data for name, data in partial.items())

    before = (root / 'images/training/000000.jpg').stat().st_mtime_ns
    make_shapes(root, train=200, val=20)
    assert files(root) == whole
    assert (root / 'images/training/000000.jpg').stat().st_mtime_ns == before


def test_a_failing_write_leaves_neither_half_a_file_nor_a_temporary_one(tmp_path, monkeypatch):
    def full_disk(source, target):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full_disk)
    with pytest.raises(UserError, match='No space left on device'):
        make_shapes(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_folder_is_left_alone(folder, monkeypatch):
    before = times(folder)
    # Drawing is what takes the time: without it the call returns at once.
    monkeypatch.setattr(shapes, 'lay_out', lambda *_: pytest.fail('drew a scene again'))
    assert make_shapes(folder, **SMALL) == folder
    assert times(folder) == before


@pytest.mark.parametrize(
    'lost',
    [
        'images/training/000003.jpg',
        'annotations/validation/000002.png',
        'annotations/instances_training.json',
        'shapes.json',
    ],
)
def test_what_was_deleted_comes_back(folder, tmp_path, lost):
    root = Path(shutil.copytree(folder, tmp_path / 'copy'))
    (root / lost).unlink()
    make_shapes(root, **SMALL)
    assert files(root) == files(folder)


def test_two_processes_at_once_give_the_right_set(folder, tmp_path):
    root = tmp_path / 'shared'
    processes = [start_tool(root, *arguments(**SMALL)) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert files(root) == files(folder)
    assert not [p for p in root.rglob('.*')]


def test_another_process_may_finish_in_the_middle_of_a_write(folder, tmp_path, monkeypatch):
    replace, nested = os.replace, []

    def replace_late(source, target):
        if Path(target).name == '000000.jpg' and not nested:
            nested.append(target)
            make_shapes(tmp_path, **SMALL)
        replace(source, target)

    monkeypatch.setattr(os, 'replace', replace_late)
    make_shapes(tmp_path, **SMALL)
    assert nested
    assert files(tmp_path) == files(folder)


# What is refused.


@pytest.mark.parametrize('change', [{'seed': 1}, {'size': 64}, {'train': 31}, {'val': 10}])
def test_a_folder_of_another_request_is_refused_and_kept(folder, change):
    before = times(folder)
    with pytest.raises(UserError, match='has other settings') as error:
        make_shapes(folder, **{**SMALL, **change})
    name, value = next(iter(change.items()))
    assert f'{name} {value}' in str(error.value)
    assert times(folder) == before


def test_an_interrupted_folder_is_not_finished_with_another_seed(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shapes, 'paint', interrupt)
        make_shapes(tmp_path, **SMALL)
    with pytest.raises(UserError, match='has other settings'):
        make_shapes(tmp_path, **SMALL, seed=1)


def test_images_from_elsewhere_are_refused(folder, tmp_path):
    root = Path(shutil.copytree(folder, tmp_path / 'copy'))
    shutil.copy(root / 'images/training/000000.jpg', root / 'images/training/cat.jpg')
    with pytest.raises(UserError, match='images from elsewhere'):
        make_shapes(root, **SMALL)


def test_a_folder_in_use_is_refused_and_kept(tmp_path):
    (tmp_path / 'thesis.tex').write_text('')
    with pytest.raises(UserError, match=r'contains other files \(thesis.tex\)'):
        make_shapes(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


# The tool.


def test_the_tool_says_what_is_there_and_draws_no_bar_outside_a_terminal(tmp_path):
    root = tmp_path / 'new' / 'set'
    process = start_tool(root, *arguments(**SMALL), '--size', 64, '--seed', 5)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, '')
    assert out == f'{root}: 30 training and 20 validation images, 64 x 64 px, seed 5\n'
    assert cv2.imread(str(root / 'images/training/000000.jpg')).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ('where', 'more', 'words'),
    [
        ('small', ('--seed', 1), 'has other settings'),
        ('a_file', (), 'is a file'),
        ('a_file/below', (), 'Not a directory'),
        ('new', ('--train', 0), 'train is 0: set a number from 1'),
        ('new', ('--size', 8), 'size is 8: set a number from 64'),
        ('new', ('--seed', -1), 'seed is -1: set a number from 0'),
    ],
)
def test_the_tool_answers_a_wrong_request_with_one_line(
    folder, where, more, words, monkeypatch, capsys
):
    (folder.parent / 'a_file').touch()
    command = [TOOL, folder.parent / where, *arguments(**SMALL), *more]
    monkeypatch.setattr(sys, 'argv', [str(part) for part in command])
    monkeypatch.syspath_prepend(TOOL.parent)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name='__main__')
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (1, '')
    assert err.startswith('error: ') and err.count('\n') == 1
    assert words in err
    assert not (folder.parent / 'new').exists()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r'cannot write the shapes to .*: Permission denied'):
        make_shapes(tmp_path / 'new', **SMALL)


# The labels.


def test_instances_and_semantic_map_agree(folder, split):
    name, coco = split
    assert coco.imgs
    for image in coco.imgs.values():
        truth = read_map(folder, name, image)
        assert truth.dtype == np.uint8 and truth.shape == (128, 128)
        union, times_covered = np.zeros_like(truth), np.zeros(truth.shape, int)
        for annotation in coco.imgToAnns[image['id']]:
            mask = coco.annToMask(annotation).astype(bool)
            assert mask.sum() == annotation['area']
            union[mask] = annotation['category_id']
            times_covered += mask
        assert times_covered.max() <= 1
        np.testing.assert_array_equal(union, truth)


def test_boxes_are_tight_and_nothing_is_tiny(split):
    _, coco = split
    for annotation in coco.anns.values():
        rows, columns = np.nonzero(coco.annToMask(annotation))
        x, y, w, h = annotation['bbox']
        assert [x, y] == [columns.min(), rows.min()]
        assert [x + w, y + h] == [columns.max() + 1, rows.max() + 1]
        assert annotation['area'] >= 40


def test_each_split_has_every_class_empty_images_crowds_occlusion_and_cut_objects(split):
    _, coco = split
    annotations = list(coco.anns.values())
    assert [c['name'] for c in coco.cats.values()] == list(CLASSES)
    assert {a['category_id'] for a in annotations if not a['iscrowd']} == {1, 2, 3}
    assert any(not coco.imgToAnns[i] for i in coco.imgs)
    crowds = [a for a in annotations if a['iscrowd']]
    assert crowds and all(isinstance(a['segmentation']['counts'], list) for a in crowds)
    assert all(isinstance(a['segmentation'], list) for a in annotations if not a['iscrowd'])
    assert any(a['bbox'][0] == 0 or a['bbox'][1] == 0 for a in annotations)
    assert max(len(found) for found in coco.imgToAnns.values()) >= 5


def test_a_mask_with_a_hole_and_two_parts_survives_as_polygons(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    cv2.circle(mask, (25, 25), 20, 1, -1)
    cv2.circle(mask, (30, 20), 6, 0, -1)
    cv2.circle(mask, (16, 30), 4, 0, -1)
    mask[50:60, 50:64] = 1
    shape = shapes.Shape(0, [np.zeros((4, 2))], mask.astype(np.float32), mask.astype(bool))
    annotation = {'id': 1, 'image_id': 0, **shapes._annotation(shape)}
    path = tmp_path / 'one.json'
    image = {'id': 0, 'height': 64, 'width': 64}
    path.write_text(json.dumps({'images': [image], 'annotations': [annotation]}))
    coco = COCO(path)
    np.testing.assert_array_equal(coco.annToMask(coco.anns[1]), mask)


def test_objects_stand_out_from_the_background(folder, split):
    name, coco = split
    differences = []
    for image in coco.imgs.values():
        picture = cv2.imread(str(folder / 'images' / name / image['file_name'])).astype(float)
        background = picture[read_map(folder, name, image) == 0].mean(axis=0)
        for annotation in coco.imgToAnns[image['id']]:
            inside = picture[coco.annToMask(annotation).astype(bool)].mean(axis=0)
            differences.append(np.abs(inside - background).sum())
    assert np.median(differences) > 120


# The readers.


def test_mmdetection_loads_it(folder):
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations

    dataset = CocoDataset(
        data_root=str(folder),
        ann_file='annotations/instances_training.json',
        data_prefix={'img': 'images/training/'},
        metainfo={'classes': CLASSES, 'palette': PALETTE},
        pipeline=[],
    )
    assert len(dataset) == SMALL['train']
    assert dataset.metainfo['classes'] == CLASSES
    load = LoadAnnotations(with_bbox=True, with_mask=True)
    ignored = 0
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        picture = cv2.imread(info['img_path'])
        assert picture.shape == (info['height'], info['width'], 3) == (128, 128, 3)
        loaded = load({**info, 'img_shape': picture.shape[:2], 'ori_shape': picture.shape[:2]})
        assert len(loaded['gt_masks']) == len(loaded['gt_bboxes']) == len(info['instances'])
        assert set(loaded['gt_bboxes_labels']) <= {0, 1, 2}
        truth = cv2.imread(
            info['img_path'].replace('images', 'annotations').replace('jpg', 'png'), -1
        )
        for mask, label in zip(loaded['gt_masks'].masks, loaded['gt_bboxes_labels'], strict=True):
            assert (truth[mask.astype(bool)] == label + 1).all()
        ignored += loaded['gt_ignore_flags'].sum()
    assert ignored >= 1


def test_mmsegmentation_loads_it(folder):
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    dataset = BaseSegDataset(
        data_root=str(folder),
        data_prefix={'img_path': 'images/validation', 'seg_map_path': 'annotations/validation'},
        img_suffix='.jpg',
        seg_map_suffix='.png',
        reduce_zero_label=True,
        metainfo={'classes': CLASSES, 'palette': PALETTE},
        pipeline=[],
    )
    assert len(dataset) == SMALL['val']
    load = LoadAnnotations()
    seen = set()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        assert cv2.imread(info['img_path']).shape == (128, 128, 3)
        labels = load(info)['gt_seg_map']
        truth = cv2.imread(info['seg_map_path'], cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(labels == 255, truth == 0)
        seen |= set(np.unique(labels))
    assert seen == {0, 1, 2, 255}
