"""COCO files as other people's tools write them: evaluated right, or refused with one line."""

import copy
import io
import json
import os
import shutil
from contextlib import contextmanager, redirect_stdout

import mmdet.datasets
import mmdet.evaluation  # noqa: F401  (registers metrics)
import numpy as np
import pytest
import torch
from command_line import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from PIL import Image
from pycocotools import mask as mask_utils

from gcvit_mm.datasets.check import check_datasets, print_reports
from gcvit_mm.datasets.preflight import check_data
from gcvit_mm.errors import UserError
from gcvit_mm.evaluation.metrics import repair_coco_metric

CLASSES = ('disk', 'box')
SIZE = HEIGHT, WIDTH = 64, 96
BOXES = [[6, 8, 20, 16], [40, 30, 18, 22], [30, 4, 25, 12]]


def right():
    """Three images with a polygon, compressed run lengths and a crowd each."""
    images, annotations = [], []
    for i in range(3):
        images.append(dict(id=i + 1, file_name=f'{i}.png', width=WIDTH, height=HEIGHT))
        for j, (x, y, w, h) in enumerate(BOXES):
            mask = np.zeros(SIZE, np.uint8, order='F')
            mask[y : y + h, x : x + w] = 1
            rle = mask_utils.encode(mask)
            edges = np.flatnonzero(np.diff(mask.ravel('F'), prepend=2)).tolist()
            segmentation = [
                [[x, y, x + w, y, x + w, y + h, x, y + h]],
                dict(size=list(rle['size']), counts=rle['counts'].decode()),
                dict(size=[HEIGHT, WIDTH], counts=np.diff([*edges, mask.size]).tolist()),
            ][j]
            annotations.append(
                dict(id=3 * i + j + 1, image_id=i + 1, category_id=1 + j % 2, bbox=[x, y, w, h],
                     area=w * h, iscrowd=int(j == 2), segmentation=segmentation)
            )  # fmt: skip
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('coco')
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(
            folder / 'images' / f'{i}.png'
        )
    return folder


@pytest.fixture(scope='module')
def config(folder):
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn_gcvit_nano_shapes.py')
    dataset = dict(
        data_root=str(folder),
        ann_file='a.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
    )
    cfg.merge_from_dict(
        {
            **{f'{split}_dataloader.dataset': dataset for split in ('train', 'val', 'test')},
            'val_evaluator.ann_file': str(folder / 'a.json'),
            'test_evaluator.ann_file': str(folder / 'a.json'),
            'model.roi_head.bbox_head.num_classes': 2,
            'model.roi_head.mask_head.num_classes': 2,
        }
    )
    return cfg


@contextmanager
def in_mmdet(registry):
    with registry.switch_scope_and_registry('mmdet') as own, redirect_stdout(io.StringIO()):
        yield own


def checked(cfg, folder, content):
    """What stops a run, or None; and what an image says that stops it when it is read."""
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / 'a.json').write_text(text)
    try:
        check_data(cfg, ('train_dataloader', 'val_dataloader'))
        with (
            DATASETS.switch_scope_and_registry('mmdet') as registry,
            redirect_stdout(io.StringIO()),
        ):
            for loader in (cfg.train_dataloader, cfg.val_dataloader):
                dataset = registry.build({**loader.dataset, 'pipeline': []})
                with in_mmdet(TRANSFORMS) as transforms:
                    steps = [
                        transforms.build(step)
                        for step in loader.dataset.pipeline
                        if step.type in ('LoadWholeImage', 'LoadAnnotations')
                    ]
                for i in range(len(dataset)):
                    data = dataset.get_data_info(i)
                    for step in steps:
                        data = step(data)
                    assert (data['gt_masks'].masks.shape[0]) == len(data['instances'])
    except UserError as error:
        message = str(error)
        assert '\n' not in message and len(message) < 1500
        return message
    return None


def score(folder, content, kind='FasterCocoMetric'):
    """The APs of boxes and masks of predictions that are the annotations, read independently."""
    path = str(folder / 'a.json')
    names = {category['id']: category['name'] for category in content['categories']}
    with in_mmdet(METRICS) as registry:
        metric = registry.build(
            dict(type=kind, ann_file=path, metric=['bbox', 'segm'], proposal_nums=(1, 10, 100))
        )
        metric.dataset_meta = dict(classes=CLASSES)
        repair_coco_metric(metric)
        for image in content['images']:
            own = [
                a for a in content['annotations']
                if a['image_id'] == image['id'] and not a.get('iscrowd')
                and names[a['category_id']] in CLASSES
            ]  # fmt: skip
            boxes = torch.tensor([a['bbox'] for a in own], dtype=torch.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            masks = np.array([decode(a['segmentation']) for a in own], bool).reshape(-1, *SIZE)
            prediction = dict(
                bboxes=boxes,
                scores=torch.full((len(own),), 0.9),
                labels=torch.tensor([CLASSES.index(names[a['category_id']]) for a in own]).long(),
                masks=torch.tensor(masks),
            )
            sample = dict(pred_instances=prediction, img_id=image['id'], ori_shape=SIZE)
            metric.process({}, [sample])
        results = metric.evaluate(len(content['images']))
    return results['coco/bbox_mAP'], results['coco/segm_mAP']


def decode(segmentation):
    if isinstance(segmentation, dict):
        rle = segmentation
        if isinstance(rle['counts'], list):
            rle = mask_utils.frPyObjects(rle, *SIZE)
        return mask_utils.decode(rle)
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *SIZE)))


# --- Kinds of faults ----------------------------------------------------------------------------


def each(key, **changes):
    """Change fields of all entries by functions of their value."""

    def change(content):
        for entry in content[key]:
            for name, function in changes.items():
                entry[name] = function(entry.get(name))

    return change


def drop(key, name):
    return lambda content: [entry.pop(name) for entry in content[key]]


def ids(kind, function):
    reference = {'images': 'image_id', 'categories': 'category_id'}[kind]

    def change(content):
        each(kind, id=function)(content)
        each('annotations', **{reference: function})(content)

    return change


def first(**values):
    return lambda content: content['annotations'][0].update(values)


def crowd(**values):
    return lambda content: content['annotations'][2]['segmentation'].update(values)


def turned(content):
    for annotation in content['annotations']:
        if isinstance(annotation['segmentation'], dict):
            annotation['segmentation']['size'].reverse()


def again(content):
    for i, annotation in enumerate(content['annotations']):
        annotation['id'] = 1 + i % 3


def corners(content):
    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        annotation['bbox'] = [x, y, x + w, y + h]


def shares(content):
    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        annotation['bbox'] = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]


def centres(content):
    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        annotation['bbox'] = [x + w / 2, y + h / 2, w, h]


def of_other_tools(content):
    """Fields that nothing here reads, with values that strict readers refuse."""
    nan = float('nan')
    content.update(info=nan, licenses='none')
    for image in content['images']:
        image.update(license='x', date_captured={}, neg_category_ids='x')
    for category in content['categories']:
        category.update(supercategory=5, keypoints=3)
    for annotation in content['annotations']:
        annotation.update(attributes={'a': nan}, score='0.9', keypoints='x', num_keypoints='x')


def root_category(content):
    content['categories'].insert(0, dict(id=0, name='disk'))


POLYGON = [6, 8, 26, 8, 26, 24, 6, 24]
RIGHT = {
    'as it is': lambda content: None,
    'annotation ids from 0': each('annotations', id=lambda v: v - 1),
    'annotation ids of negative numbers': each('annotations', id=lambda v: -v),
    'annotation ids of texts': each('annotations', id=lambda v: f'a{v}'),
    'annotation ids of fractions': each('annotations', id=lambda v: v + 0.5),
    'annotation ids beyond 64 bits': each('annotations', id=lambda v: v + 2**64),
    'image ids from 0': ids('images', lambda v: v - 1),
    'large image ids': ids('images', lambda v: v + 2**60),
    'category ids from 0': ids('categories', lambda v: v - 1),
    'category ids with gaps': ids('categories', lambda v: 7 * v),
    'iscrowd true or false': each('annotations', iscrowd=bool),
    'iscrowd null where there is no crowd': each('annotations', iscrowd=lambda v: v or None),
    'no iscrowd where there is no crowd': lambda content: [
        a.pop('iscrowd') for a in content['annotations'] if not a['iscrowd']
    ],
    'ignore null': each('annotations', ignore=lambda v: None),
    'a click before the polygon': first(segmentation=[[6, 8], POLYGON]),
    'a line before the polygon': first(segmentation=[[6, 8, 20, 9], POLYGON]),
    'an empty polygon before the polygon': first(segmentation=[[], POLYGON]),
    'other categories': lambda content: content['categories'].insert(0, dict(id=9, name='x')),
    'fields of other tools': of_other_tools,
    'areas of fractions': each('annotations', area=lambda v: v + 0.25),
}
WRONG = {
    'image ids of texts': (ids('images', str), ['images: id', 'whole number']),
    'image ids of fractions': (ids('images', float), ['images: id', 'whole number']),
    'negative image ids': (ids('images', lambda v: -v), ['images: id', 'whole number']),
    'image ids beyond 64 bits': (ids('images', lambda v: v + 2**63), ['images: id']),
    'image ids of booleans': (ids('images', bool), ['images: id']),
    'category ids of texts': (ids('categories', str), ['categories: id']),
    'references of another type': (each('annotations', image_id=str), ['annotations: image_id']),
    'repeated annotation ids': (again, ['duplicate annotation ids (6 in all)', 'annotation 1']),
    'repeated image ids': (each('images', id=lambda v: 1), ['duplicate image id', '1.png']),
    'no ids': (drop('annotations', 'id'), ['annotations: id']),
    'iscrowd of texts': (each('annotations', iscrowd=str), ['iscrowd is not 0 or 1']),
    'ignore of texts': (each('annotations', ignore=lambda v: '0'), ['ignore is not 0 or 1']),
    'areas of 0': (each('annotations', area=lambda v: 0), ['no object is left', '9 of area 0']),
    'no areas': (drop('annotations', 'area'), ['area is not a number']),
    'all are to be ignored': (each('annotations', ignore=lambda v: 1), ['no object is left']),
    'all are crowds': (each('annotations', iscrowd=lambda v: 1), ['no object is left']),
    'no masks': (each('annotations', segmentation=lambda v: []), ['trains on masks', '0.png']),
    'empty polygons': (each('annotations', segmentation=lambda v: [[]]), ['trains on masks']),
    'null masks': (each('annotations', segmentation=lambda v: None), ['trains on masks']),
    'a mask of a point': (first(segmentation=[[6, 8]]), ['fewer than 3 points', 'annotation 1']),
    'a polygon of odd length': (first(segmentation=[[6, 8, 9, 9, 7]]), ['odd number']),
    'runs that stop early': (crowd(counts=[30, 40]), ['run lengths do not decode', 'annotation 3']),
    'runs of fractions': (crowd(counts=[6000.0, 144.0]), ['run lengths do not decode']),
    'runs below 0': (crowd(counts=[6145, -1]), ['run lengths do not decode']),
    'turned run lengths': (turned, ['size of run lengths', '[96, 64]']),
    'width and height exchanged': (
        each('images', width=lambda v: HEIGHT, height=lambda v: WIDTH),
        ['64', '96'],
    ),
    'boxes in shares of the image': (shares, ['shares of the image']),
    'boxes of corners': (corners, ['corners x1, y1, x2, y2']),
    'boxes of centres': (centres, ['most boxes do not fit', 'upper left corner', '9 of 9']),
    'a mask away from its box': (first(bbox=[70, 40, 10, 10]), ['mask and box do not overlap']),
    'boxes of texts': (each('annotations', bbox=lambda v: list(map(str, v))), ['bbox']),
    'a root category with the name of a class': (
        root_category,
        ['disk: id 0 has 0 objects, id 1 has 6 objects'],
    ),
    'names in capitals': (
        each('categories', name=str.title),
        ["'disk' is 'Disk' in the file"],
    ),
    'categories in another order': (lambda c: c['categories'].reverse(), ['another order']),
    'no annotations': (lambda c: c['annotations'].clear(), ['lists no annotations']),
    'no images': (lambda c: c['images'].clear(), ['lists no images']),
    'no categories': (lambda c: c['categories'].clear(), ['lists no categories']),
    'file names that are URLs': (
        each('images', file_name=lambda v: f'https://example.org/{v}'),
        ['images: file_name', 'https://'],
    ),
    'files that are not there': (each('images', file_name=lambda v: 'x' + v), ['x0.png']),
    'widths of fractions': (each('images', width=float), ['images: width']),
}  # fmt: skip


@pytest.mark.parametrize('kind', RIGHT)
def test_usual_forms_are_used_and_evaluated_right(kind, folder, config):
    content = right()
    RIGHT[kind](content)
    assert checked(config, folder, content) is None
    for metric in ('CocoMetric', 'FasterCocoMetric'):
        assert score(folder, content, metric) == (1, 1)


def test_a_file_name_that_is_not_utf8_is_evaluated_right(folder, config):
    content = right()
    content['images'][0]['file_name'] = name = os.fsdecode(b'\xff.png')
    shutil.copy(folder / 'images/0.png', folder / 'images' / name)
    assert checked(config, folder, content) is None
    assert score(folder, content) == (1, 1)


@pytest.mark.parametrize('kind', WRONG)
def test_faults_stop_a_run_with_the_entry_and_the_reason(kind, folder, config):
    content = right()
    change, parts = WRONG[kind]
    change(content)
    message = checked(config, folder, content)
    assert message and all(part in message for part in parts), message
    report = check_datasets(config, ['train'])[0]
    assert report.count('error')


@pytest.mark.parametrize(
    ('classes', 'part'),
    [
        ('disk', "write ('disk',)"),
        ((1, 2), "write '1'"),
        (('disk', 'disk'), 'twice'),
        (7, 'list of names'),
    ],
)
def test_class_names_that_are_no_list_of_texts_are_refused(classes, part, folder, config):
    (folder / 'a.json').write_text(json.dumps(right()))
    cfg = copy.deepcopy(config)
    cfg.train_dataloader.dataset.metainfo = dict(classes=classes)
    with pytest.raises(UserError) as error:
        check_data(cfg, ('train_dataloader',))
    assert part in str(error.value)


@pytest.mark.parametrize('text', ['', '[]', '{"images": 3}', '[' * 100_000, '\ufeff{}', '{"a": '])
def test_files_of_another_form_are_refused(text, folder, config):
    message = checked(config, folder, text)
    assert message and 'a.json' in message


@pytest.mark.parametrize('name', ['\x1b]0;owned\x07\x1b[31m.png', '\ud800.png', 'a\nb.png', 'a\0b'])
def test_names_from_files_reach_no_terminal_as_control_characters(name, folder, config, capsys):
    content = right()
    content['images'][0]['file_name'] = content['categories'][1]['name'] = name
    message = checked(config, folder, content)
    assert message
    print_reports(check_datasets(config, ['train']))
    lines = capsys.readouterr().out.split('\n')
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize('name', ['pipe', 'folder', 'dangling', 'loop'])
def test_what_is_no_file_is_refused_before_anything_waits_for_it(name, folder, config):
    path = folder / 'images' / name
    if name == 'pipe':
        os.mkfifo(path)
    elif name == 'folder':
        path.mkdir()
    else:
        path.symlink_to('nowhere' if name == 'dangling' else name)
    content = right()
    content['images'][1]['file_name'] = name
    message = checked(config, folder, content)
    assert message and f'images/{name}: No such file' in message
    assert check_datasets(config, ['train'])[0].count('error')


def test_an_evaluator_that_counts_other_images_than_the_loader_reads_is_refused(folder, config):
    (folder / 'a.json').write_text(json.dumps(right()))
    cfg = copy.deepcopy(config)
    cfg.val_dataloader.dataset.indices = 2
    with pytest.raises(UserError, match='indices'):
        check_data(cfg, ('val_dataloader',))
    cfg = copy.deepcopy(config)
    twice = dict(type='ConcatDataset', datasets=[cfg.val_dataloader.dataset] * 2)
    cfg.val_dataloader.dataset = twice
    with pytest.raises(UserError, match='equal image ids'):
        check_data(cfg, ('val_dataloader',))
    content = right()
    content['images'].pop()
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] < 3]
    (folder / 'two.json').write_text(json.dumps(content))
    cfg = copy.deepcopy(config)
    cfg.val_dataloader.dataset.ann_file = 'two.json'
    with pytest.raises(UserError, match='the evaluator has 3 images, the data loader 2'):
        check_data(cfg, ('val_dataloader',))


def test_objects_that_mmdet_skips_are_counted_as_mmdet_counts_them(folder, config):
    content = right()
    content['annotations'][0].update(area=0)
    content['annotations'][3].update(ignore=1)
    content['annotations'][4].update(bbox=[40, 30, 0.5, 22])
    (folder / 'a.json').write_text(json.dumps(content))
    (report,) = check_datasets(config, ['train'])
    with in_mmdet(DATASETS) as registry:
        dataset = registry.build({**config.train_dataloader.dataset, 'pipeline': []})
    instances = [i for n in range(len(dataset)) for i in dataset.get_data_info(n)['instances']]
    counted = report.used['objects']
    assert counted['used'] == sum(not i['ignore_flag'] for i in instances) == 3
    assert counted['crowds'] == sum(i['ignore_flag'] for i in instances) == 3
    assert report.used['images'] == {'file': 3, 'used': len(dataset)}


# --- Any change -----------------------------------------------------------------------------------

VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 64, 96, 2**31, 2**63, 1e300, 0.5, -0.0]),
    st.sampled_from(['', '0', '1', 'nan', 'disk', '1.png', '../images/0.png', 'a\0b', '\ud800']),
    st.sampled_from([[], [[]], {}, [1], [0, 0, 0, 0], [[6, 8]], [POLYGON], {'id': 1}]),
    st.sampled_from([float('nan'), float('inf'), float('-inf')]),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.floats() | st.integers(-99, 99), max_size=9),
)  # fmt: skip


def places(node, path=()):
    """The paths of all values in a file."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def changed(draw):
    """A right file with one change of type, value, size or reference."""
    content = right()
    path = draw(st.sampled_from(list(places(content))))
    node = content
    for key in path[:-1]:
        node = node[key]
    key = path[-1]
    kind = draw(
        st.sampled_from(['value', 'drop', 'again', 'as text', 'as float', 'other', 'scale'])
    )
    value = node[key]
    if kind == 'drop':
        del node[key]
    elif kind == 'again' and isinstance(node, list):
        node.insert(key, copy.deepcopy(value))
    elif kind == 'as text':
        node[key] = json.dumps(value)
    elif kind == 'other' and isinstance(node, list):
        node[key] = copy.deepcopy(draw(st.sampled_from(node)))
    elif kind in ('as float', 'scale') and isinstance(value, int):
        node[key] = float(value) if kind == 'as float' else draw(st.floats(-3, 3)) * value
    else:
        node[key] = draw(VALUES)
    return content


def try_change(folder, config, content):
    message = checked(config, folder, content)
    if message is None:
        reports = check_datasets(config, ['val'], pixels=False)
        warned = any(report.count('warning') for report in reports)
        for metric in ('CocoMetric', 'FasterCocoMetric'):
            result = score(folder, content, metric)
            assert result == (1, 1) or warned, result


FUZZ = dict(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(max_examples=30, **FUZZ)
@given(content=changed())
def test_one_change_of_a_right_file_is_refused_or_evaluated_right(folder, config, content):
    try_change(folder, config, content)


@pytest.mark.slow
@settings(max_examples=500, **FUZZ)
@given(content=changed())
def test_500_changes_of_a_right_file_are_refused_or_evaluated_right(folder, config, content):
    try_change(folder, config, content)
