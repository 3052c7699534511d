"""Annotations that are read once on a machine: what the processes get, and from where."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from command_line import ENVIRONMENT, ROOT
from make_coco_size import make
from mmengine.config import Config
from mmengine.registry import DATASETS
from test_coco_files import in_mmdet, right
from test_distributed import unused_port

from gcvit_mm.datasets.check import check_datasets
from gcvit_mm.datasets.check.objects import are_plain, check_object, why_skipped

CLASSES = ('disk', 'box')
SCRIPT = """
import hashlib, json, os, sys
from pathlib import Path
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import DATASETS
import gcvit_mm.register
from gcvit_mm.config import datasets_of
from gcvit_mm.datasets.preflight import check_data
from gcvit_mm.errors import UserError

cfg, tasks = Config(json.loads(sys.argv[1])), sys.argv[2:]
if 'WORLD_SIZE' in os.environ:
    dist.init_process_group('gloo')
rank = os.environ.get('RANK', '0')
try:
    check_data(cfg, ('train_dataloader', 'val_dataloader'), keep=True)
except UserError as error:
    sys.exit(f'refused: {error}')
if 'unreadable elsewhere' in tasks and rank != '0':
    import pycocotools.coco
    pycocotools.coco.json = None
if 'gone' in tasks:
    if dist.is_initialized():
        dist.barrier()
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for dataset in datasets_of(loader):
            Path(dataset.data_root, dataset.ann_file).unlink(missing_ok=True)
if 'other settings' in tasks and rank != '0':
    cfg.train_dataloader.dataset.filter_cfg = None
kept = []
for loader in (cfg.train_dataloader, cfg.val_dataloader):
    with DATASETS.switch_scope_and_registry('mmdet') as registry:
        kept.append(dataset := registry.build(loader.dataset))
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    print(rank, json.dumps(infos), flush=True)
print(rank, 'maps', open('/proc/self/maps').read().count('memfd:gcvit_mm'), flush=True)
if dist.is_initialized():
    dist.barrier()
if 'killed' in tasks:
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def settings(tmp_path):
    """A config with files for training, in one an image without objects, and for validation."""
    for name, ids in (('a', 1), ('b', 11), ('val', 1)):
        content = right()
        content['images'] = content['images'] + [
            dict(id=9, file_name='empty.png', width=96, height=64)
        ] * (name == 'a')
        for image in content['images']:
            image['id'] += ids
            (tmp_path / image['file_name']).touch()
        for annotation in content['annotations']:
            annotation['image_id'] += ids
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    common = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img=''),
        pipeline=[],
        metainfo=dict(classes=CLASSES),
    )
    train = dict(common, ann_file='a.json', filter_cfg=dict(filter_empty_gt=True))
    return dict(
        default_scope='mmdet',
        model=dict(),
        train_dataloader=dict(dataset=train),
        val_dataloader=dict(dataset=dict(common, ann_file='val.json', test_mode=True)),
    )


def run(settings, *tasks, processes=1):
    """The lines that each process prints, and what all of them say in errors."""
    started = []
    port = unused_port()
    for rank in range(processes):
        group = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
        group |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
        started.append(
            subprocess.Popen(
                [sys.executable, '-c', SCRIPT, json.dumps(settings), *tasks],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**ENVIRONMENT, **(group if processes > 1 else {})},
            )
        )
    outputs = [process.communicate(timeout=120) for process in started]
    kept = [[line[2:] for line in out.splitlines() if line[:2] in '0 1 2 '] for out, _ in outputs]
    return kept, ''.join(error for _, error in outputs)


def expected(settings):
    """The lines about the data sets as mmdet builds them."""
    lines = []
    with in_mmdet(DATASETS) as registry:
        for split in ('train', 'val'):
            dataset = registry.build(Config(settings)[f'{split}_dataloader'].dataset)
            lines.append(json.dumps([dataset.get_data_info(i) for i in range(len(dataset))]))
    return lines


def test_a_run_reads_each_file_once_and_its_processes_share_the_memory(settings):
    right = expected(settings)
    before = sorted(os.listdir('/dev/shm'))
    lines, errors = run(settings, 'unreadable elsewhere', 'gone', 'killed', processes=3)
    assert lines == [[*right, 'maps 2']] * 3, errors
    assert sorted(os.listdir('/dev/shm')) == before


def test_a_process_with_other_settings_reads_for_itself(settings):
    right = expected(settings)
    lines, errors = run(settings, 'other settings', processes=2)
    settings['train_dataloader']['dataset']['filter_cfg'] = None
    assert lines == [[*right, 'maps 2'], [*expected(settings), 'maps 1']], errors
    assert lines[0][0] != lines[1][0]


def test_all_processes_end_with_the_error_of_the_one_that_checks(settings, tmp_path):
    content = json.loads((tmp_path / 'a.json').read_text())
    content['annotations'][4]['bbox'] = [0, 0, 'x', 1]
    (tmp_path / 'a.json').write_text(json.dumps(content))
    lines, errors = run(settings, processes=2)
    assert lines == [[], []]
    assert errors.count('refused') == errors.count('annotations[4]') == 2


def test_wrapped_and_joined_data_sets_are_as_mmdet_builds_them(settings):
    dataset = settings['train_dataloader']['dataset']
    balanced = dict(type='ClassBalancedDataset', dataset=dataset, oversample_thr=0.9)
    both = [balanced, dict(dataset, ann_file='b.json', indices=[2, 0])]
    joined = dict(type='ConcatDataset', datasets=both)
    settings['train_dataloader']['dataset'] = joined
    right = expected(settings)
    lines, errors = run(settings, 'gone')
    assert lines == [[*right, 'maps 3']], errors


def test_objects_found_plain_in_arrays_are_right_and_used_one_by_one():
    rng = np.random.default_rng(0)
    values = [*np.linspace(-4, 100, 27).tolist(), 0, 1, 1.5, -1, 1e300, float('nan'), True, '3']
    annotations = []
    for _ in range(100):
        annotations += pickle.loads(pickle.dumps(right()['annotations']))
    for annotation in annotations[50:]:
        for _ in range(rng.integers(3)):
            key = rng.choice(['bbox', 'area', 'iscrowd', 'ignore', 'segmentation', 'point'])
            value = values[rng.integers(len(values))]
            if key == 'bbox':
                annotation['bbox'][rng.integers(4)] = float(value) % 120
            elif key == 'point':
                mask = annotation['segmentation']
                if isinstance(mask, list) and mask and isinstance(mask[0], list) and mask[0]:
                    mask[0][rng.integers(len(mask[0]))] = value
            elif key == 'segmentation':
                other = [None, [], [[]], [[1, 2, 3]], [[6, 8, 20, 8]], 5, ['x'], [[0] * 7]]
                annotation[key] = other[rng.integers(len(other))]
            else:
                annotation[key] = int(rng.integers(2))
    mixed = [0, 0]
    for needs_masks in (True, False):
        for start in range(0, len(annotations), 10):  # one text or True hides all others
            part = annotations[start : start + 10]
            boxes = np.array([a['bbox'] for a in part], float)
            sizes = np.tile([96, 64], (len(part), 1))
            plain = are_plain(part, boxes, sizes, needs_masks=needs_masks)
            for annotation, is_plain in zip(part, plain, strict=True):
                rules = dict(needs_mask=needs_masks)
                found = [*check_object(annotation, 96, 64, draw=False, **rules)]
                reason = why_skipped(annotation, 96, 64, **rules)
                assert not is_plain or (not found and not reason), annotation
                mixed[int(is_plain)] += 1
    assert min(mixed) > 100


def test_a_data_set_of_cocos_size_is_one_that_trainings_take(tmp_path):
    make(tmp_path / 'coco', 0.001)
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn_gcvit_tiny_coco.py')
    file = tmp_path / 'coco/annotations/instances_train2017.json'
    cfg.train_dataloader.dataset.data_root = f'{tmp_path}/coco'
    with in_mmdet(DATASETS):
        (report,) = check_datasets(cfg, ['train'], pixels=False)
    assert not report.count('error')
    assert report.used['images']['file'] == 118
    assert report.used['objects']['used'] + report.used['objects']['crowds'] == 866
    assert 450 < file.stat().st_size / 866 < 650  # COCO's has 517 bytes an object
