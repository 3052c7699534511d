"""Labels in other formats are read exactly, nothing is lost silently, and bad files are named."""

import base64
import csv
import io
import json
import os
import re
import shutil
import zlib
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import yaml
from command_line import ROOT, fail, succeed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as mask_utils

from gcvit_mm import formats
from gcvit_mm.choices import LABEL_FORMATS, LABEL_WRITERS
from gcvit_mm.datasets.check import check_datasets
from gcvit_mm.errors import UserError
from gcvit_mm.formats import Dataset, bring_in, export

SAMPLES = os.environ.get('GCVIT_MM_SAMPLES')
needs_samples = pytest.mark.skipif(not SAMPLES, reason='GCVIT_MM_SAMPLES is not set')
CLASSES = ['zebra', 'apple pie', 'Größe']
# Image, width, height, split, and objects: class, box as corners.
TRUTH = [
    ('a b.jpg', 80, 60, 'train', [('zebra', (4, 5, 24, 35)), ('Größe', (30.5, 10.25, 70, 50))]),
    ('straße.JPG', 64, 96, 'train', [('apple pie', (0, 0, 64, 96))]),
    ('empty.png', 32, 32, 'train', []),
    ('c.d.jpeg', 50, 40, 'val', [('zebra', (10, 10, 20, 20)), ('zebra', (25, 5, 45, 35))]),
]


def scene(folder, layout='images/{split}/{name}', truth=TRUTH, pixels=None):
    """Write the images of the truth; give their paths."""
    rng = np.random.default_rng(0)
    paths = {}
    for name, width, height, split, _ in truth:
        path = folder / layout.format(split=split, name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(path)
        paths[name] = path
    return paths


def corners(box):
    """A polygon of a box, with more corners than a box has."""
    x, y, right, bottom = box
    return [(x, y), (right, y), (right, bottom), ((x + right) / 2, bottom), (x, bottom)]


def flat(points):
    return [float(value) for point in points for value in point]


def stem(name):
    return os.path.splitext(name)[0]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding='utf-8')


# Each writes the truth in a format as its tools do, by what their documents say.


def as_coco(folder, truth=TRUTH):
    scene(folder, '{split}2017/{name}', truth)
    for split in ('train', 'val'):
        content = {'images': [], 'annotations': []}
        content['categories'] = [{'id': 7 - i, 'name': c} for i, c in enumerate(CLASSES)]
        for name, width, height, own, objects in truth:
            if own != split:
                continue
            number = 100 + len(content['images'])
            entry = {'id': number, 'file_name': name, 'width': width, 'height': height}
            content['images'].append(entry)
            for label, (x, y, right, bottom) in objects:
                annotation = {
                    **{'id': len(content['annotations']), 'image_id': number, 'iscrowd': 0},
                    'category_id': 7 - CLASSES.index(label),
                    'bbox': [x, y, right - x, bottom - y],
                    'area': (right - x) * (bottom - y),
                    'segmentation': [flat(corners((x, y, right, bottom)))],
                }
                content['annotations'].append(annotation)
        write(folder / f'annotations/instances_{split}2017.json', content)
    return folder


def as_yolo(folder, truth=TRUTH, polygons=False, layout='images/{split}/{name}', listed=False):
    paths = scene(folder, layout, truth)
    for name, width, height, _, objects in truth:
        lines = []
        for label, (x, y, right, bottom) in objects:
            numbers = (x + right) / 2 / width, (y + bottom) / 2 / height
            numbers += (right - x) / width, (bottom - y) / height
            if polygons:
                points = corners((x, y, right, bottom))
                numbers = flat((px / width, py / height) for px, py in points)
            lines.append(' '.join(map(repr, (CLASSES.index(label), *numbers))))
        text = str(paths[name].relative_to(folder)).replace('images', 'labels')
        file = (folder / text).with_suffix('.txt')
        if objects:
            write(file, ''.join(f'{line}\r\n' for line in lines))
    settings = {'names': CLASSES, 'nc': 3, 'train': '../train/images', 'val': '../valid/images'}
    if listed:
        settings |= {'train': 'train.txt', 'val': 'val.txt'}
        for split in ('train', 'val'):
            own = [n for n, *_, s, _ in truth if s == split]
            lines = [f'./{paths[name].relative_to(folder)}\n' for name in own]
            write(folder / f'{split}.txt', ''.join(lines))
    write(folder / 'data.yaml', yaml.safe_dump(settings, allow_unicode=True))
    return folder


def as_voc(folder, truth=TRUTH):
    scene(folder, 'VOCdevkit/VOC2012/JPEGImages/{name}', truth)
    root = folder / 'VOCdevkit/VOC2012'
    lists = {'train': '', 'val': ''}
    for name, width, height, split, objects in truth:
        nodes = ''
        for label, box in objects:
            values = zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True)
            inside = ''.join(f'<{key}>{value}</{key}>' for key, value in [*values][::-1])
            nodes += f'<object><name>{label}</name><bndbox>{inside}</bndbox></object>'
        size = f'<size><width>{width}</width><height>{height}</height><depth>3</depth></size>'
        text = f'<annotation><filename>{name}</filename>{size}{nodes}</annotation>'
        write(root / 'Annotations' / f'{stem(name)}.xml', text)
        lists[split] += f'{stem(name)}\n'
    for split, text in lists.items():
        write(root / 'ImageSets/Main' / f'{split}.txt', text)
    return folder


def as_labelme(folder, truth=TRUTH):
    scene(folder, '{split}/{name}', truth)
    for name, width, height, split, objects in truth:
        shapes = [
            {'label': label, 'points': corners(box), 'shape_type': 'polygon'}
            for label, box in objects
        ]
        content = {'imagePath': f'..\\{split}\\{name}', 'shapes': shapes}
        content |= {'imageWidth': width, 'imageHeight': height, 'imageData': 'cGl4ZWxz'}
        write(folder / split / f'{stem(name)}.json', content)
    return folder


def as_cvat(folder, truth=TRUTH):
    scene(folder, 'images/{name}', truth)
    labels = ''.join(f'<label><name>{c}</name><color>#0a0b0c</color></label>' for c in CLASSES)
    images = ''
    for number, (name, width, height, split, objects) in enumerate(truth):
        nodes = ''
        for label, box in objects:
            points = ';'.join(f'{x},{y}' for x, y in corners(box))
            nodes += f'<polygon label="{label}" points="{points}" z_order="0"></polygon>'
        size = f'width="{width}" height="{height}" subset="{split}"'
        images += f'<image id="{number}" name="{name}" {size}>{nodes}</image>'
    meta = f'<meta><job><labels>{labels}</labels></job></meta>'
    write(folder / 'annotations.xml', f'<annotations>{meta}{images}</annotations>')
    return folder


def as_via(folder, truth=TRUTH):
    scene(folder, '{split}/{name}', truth)
    for split in ('train', 'val'):
        entries = {}
        for name, _, _, own, objects in truth:
            regions = []
            for label, box in objects:
                xs, ys = zip(*corners(box), strict=True)
                shape = {'name': 'polygon', 'all_points_x': xs, 'all_points_y': ys}
                attributes = {'quality': {'good': True}, 'class': label}
                regions.append({'shape_attributes': shape, 'region_attributes': attributes})
            if own == split:
                entries[f'{name}123'] = {'filename': name, 'size': 123, 'regions': regions}
        content = {'_via_settings': {}, '_via_img_metadata': entries, '_via_attributes': {}}
        write(folder / split / 'via_region_data.json', content)
    return folder


def as_supervisely(folder, truth=TRUTH):
    scene(folder, '{split}/img/{name}', truth)
    write(folder / 'meta.json', {'classes': [{'title': c, 'color': '#010203'} for c in CLASSES]})
    for name, width, height, split, objects in truth:
        entries = [
            {'classTitle': label, 'geometryType': 'polygon', 'points': {'exterior': corners(box)}}
            for label, box in objects
        ]
        content = {'size': {'width': width, 'height': height}, 'objects': entries}
        write(folder / split / 'ann' / f'{name}.json', content)
    return folder


def as_csv(folder, truth=TRUTH, header=True):
    for split in ('train', 'val'):
        own = [entry for entry in truth if entry[3] == split]
        scene(folder, '{split}/{name}', own)
        text = io.StringIO()
        rows = csv.writer(text)
        if header:
            rows.writerow(['filename', 'width', 'height', 'class', 'xmin', 'ymin', 'xmax', 'ymax'])
        for name, width, height, _, objects in own:
            for label, box in objects:
                row = [name, width, height, label, *box] if header else [name, *box, label]
                rows.writerow(row)
            if not objects:
                rows.writerow([name, width, height, *[''] * 5] if header else [name, *[''] * 5])
        write(folder / split / 'labels.csv', text.getvalue())
    return folder


OBJECTS = {
    'coco': (as_coco, 'instances'),
    'yolo': (as_yolo, 'detection'),
    'yolo-polygons': (partial(as_yolo, polygons=True), 'instances'),
    'yolo-roboflow': (partial(as_yolo, layout='{split}/images/{name}'), 'detection'),
    'yolo-lists': (partial(as_yolo, layout='images/{name}', listed=True), 'detection'),
    'voc': (as_voc, 'detection'),
    'labelme': (as_labelme, 'instances'),
    'cvat': (as_cvat, 'instances'),
    'via': (as_via, 'instances'),
    'supervisely': (as_supervisely, 'instances'),
    'csv': (as_csv, 'detection'),
    'csv-retinanet': (partial(as_csv, header=False), 'detection'),
}


def contents(dataset, split):
    """The objects of each image by its name: class, box, mask, crowd."""
    content = json.loads(dataset.ann_file(split).read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    found = {}
    for image in content['images']:
        path = dataset.images / image['file_name']
        with Image.open(path) as opened:
            assert opened.size == (image['width'], image['height'])
        own = [a for a in content['annotations'] if a['image_id'] == image['id']]
        found[path.name] = sorted(
            (names[a['category_id']], tuple(a['bbox']), pixels(a, image), a['iscrowd']) for a in own
        )
    return found


def pixels(annotation, image):
    mask = annotation['segmentation']
    if not mask:
        return ''
    height, width = image['height'], image['width']
    if isinstance(mask, list):
        mask = mask_utils.merge(mask_utils.frPyObjects(mask, height, width))
    elif isinstance(mask['counts'], list):
        mask = mask_utils.frPyObjects(mask, height, width)
    return mask_utils.decode(mask).tobytes().hex()


def expected(truth, split, masks):
    def of(label, box, width, height):
        x, y, right, bottom = box
        annotation = {'segmentation': [flat(corners(box))] if masks else []}
        mask = pixels(annotation, {'height': height, 'width': width})
        return label, (x, y, right - x, bottom - y), mask, 0

    return {
        name: sorted(of(*own, width, height) for own in objects)
        for name, width, height, part, objects in truth
        if part == split
    }


def close(ours, theirs):
    """Equal but for rounding of boxes that are shares of the image."""
    assert ours.keys() == theirs.keys()
    for name, objects in ours.items():
        assert [(o[0], o[2], o[3]) for o in objects] == [(o[0], o[2], o[3]) for o in theirs[name]]
        boxes = [box for _, box, *_ in objects], [box for _, box, *_ in theirs[name]]
        np.testing.assert_allclose(*boxes, atol=1e-9)


def problems(dataset):
    return {what: places for (_, what), places in dataset.reports[0].problems.items()}


@pytest.mark.parametrize('format', OBJECTS)
def test_objects_of_each_format_arrive_exactly(format, tmp_path):
    make, task = OBJECTS[format]
    before = files(make(tmp_path / 'the source'))
    dataset = bring_in(tmp_path / 'the source', tmp_path / 'out')
    assert dataset.format == format.split('-')[0]
    assert dataset.task == task
    declared = format.split('-')[0] in ('coco', 'yolo', 'cvat', 'supervisely')
    assert dataset.classes == tuple(CLASSES if declared else sorted(CLASSES))
    for split in ('train', 'val'):
        close(contents(dataset, split), expected(TRUTH, split, task == 'instances'))
    assert not {'warning', 'error'} & {severity for severity, _ in dataset.reports[0].problems}
    assert files(tmp_path / 'the source') == before, 'the source is changed'


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# Masks: of instances, in colours, as label maps. Values of pixels must arrive exactly.


def blobs(width, height, seed=0):
    """Values 0 to 3 (H, W), each a rectangle with a notch, so that no box is the mask."""
    values = np.zeros((height, width), np.uint8)
    for value in (1, 2, 3):
        left = 2 + (value - 1) * width // 3
        values[3 + seed : height - 4, left : left + width // 4] = value
        values[3 + seed : 6 + seed, left : left + 3] = 0
    return values


MAPS = {name: blobs(w, h, i) for i, (name, w, h, *_) in enumerate(TRUTH)}
COLORS = {'void': (0, 0, 0), 'Sky': (128, 64, 128), 'tree top': (1, 2, 3), 'car': (255, 0, 9)}


def save(path, values, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette(palette)
    image.save(path)


def pairs(folder, images, masks, convert=lambda values: values, palette=None):
    """Write images, and what a function makes of their values as masks."""
    for name in scene(folder, images):
        save(folder / masks.format(stem(name)), convert(MAPS[name]), palette)
    return folder


def as_pennfudan(folder):
    return pairs(folder, 'PNGImages/{name}', 'PedMasks/{}_mask.png')


def as_nuclei(folder):
    for name in scene(folder, 'dummy/{name}'):
        place = folder / 'stage1_train' / stem(name)
        (place / 'images').mkdir(parents=True)
        (folder / 'dummy' / name).rename(place / 'images' / name)
        for value in (1, 2, 3):
            save(place / 'masks' / f'{value * 77}.png', (MAPS[name] == value) * np.uint8(255))
    (folder / 'dummy').rmdir()
    return folder


def as_panoptic(folder):
    content = {'images': [], 'annotations': []}
    content['categories'] = [
        {'id': 5, 'name': 'thing', 'isthing': 1},
        {'id': 9, 'name': 'stuff', 'isthing': 0},
    ]
    for number, name in enumerate(scene(folder, 'val2017/{name}')):
        ids = MAPS[name].astype(np.uint32) * 70000
        save(
            folder / 'annotations/panoptic_val2017' / f'{stem(name)}.png',
            np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8),
        )
        content['images'].append({'id': number, 'file_name': name})
        segments = [{'id': v * 70000, 'category_id': 9 if v == 3 else 5} for v in (1, 2, 3)]
        entry = {'image_id': number, 'file_name': f'{stem(name)}.png', 'segments_info': segments}
        content['annotations'].append(entry)
    write(folder / 'annotations/panoptic_val2017.json', content)
    return folder


@pytest.mark.parametrize(
    ('make', 'format', 'values'),
    [
        (as_pennfudan, 'instance-masks', (1, 2, 3)),
        (as_nuclei, 'instance-masks', (1, 2, 3)),
        (as_panoptic, 'panoptic', (1, 2)),
    ],
    ids=['pennfudan', 'nuclei', 'panoptic'],
)
def test_masks_of_instances_arrive_to_the_pixel(make, format, values, tmp_path):
    dataset = bring_in(make(tmp_path / 'source'))
    assert (dataset.format, dataset.task) == (format, 'instances')
    assert len(dataset.classes) == 1
    found = {name: own for s in ('train', 'val') for name, own in contents(dataset, s).items()}
    for name, truth in MAPS.items():
        masks = [(truth == value).astype(np.uint8) for value in values]
        ours = sorted(mask for _, _, mask, _ in found[name])
        assert ours == sorted(np.asfortranarray(mask).tobytes().hex() for mask in masks)
        boxes = sorted(box for _, box, *_ in found[name])
        ys, xs = np.nonzero(masks[0])
        first = xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1
        assert boxes[0] == pytest.approx(first)


def test_a_chosen_format_says_what_values_mean(tmp_path):
    as_pennfudan(tmp_path)
    dataset = bring_in(tmp_path, format='label-maps')
    assert dataset.classes == ('class_0', 'class_1', 'class_2', 'class_3')
    assert bring_in(tmp_path).task == 'instances'


def as_camvid(folder, alpha=False):
    colours = np.array([(*color, 200) for color in COLORS.values()], np.uint8)
    colours = colours if alpha else colours[:, :3]
    masks = 'LabeledApproved_full/{}_L.png'
    pairs(folder, '701_StillsRaw_full/{name}', masks, lambda values: colours[values])
    lines = [f'{r} {g} {b}\t\t{name}\r\n' for name, (r, g, b) in COLORS.items()]
    write(folder / 'label_colors.txt', ''.join(lines))
    return folder


def as_class_dict(folder):
    as_camvid(folder, alpha=True)
    (folder / 'label_colors.txt').unlink()
    lines = [f'{name},{r},{g},{b}\n' for name, (r, g, b) in COLORS.items()]
    write(folder / 'class_dict.csv', 'name,r,g,b\n' + ''.join(lines))
    return folder


def as_cvat_masks(folder):
    """CVAT's "Segmentation mask 1.1": palettes, and a second mask with instances."""
    palette = [value for color in COLORS.values() for value in color]
    for kind in ('SegmentationClass', 'SegmentationObject'):
        pairs(folder, 'JPEGImages/{name}', kind + '/{}.png', palette=palette)
    lines = [f'{name}:{r},{g},{b}::\n' for name, (r, g, b) in COLORS.items()]
    write(folder / 'labelmap.txt', '# label:color_rgb:parts:actions\n' + ''.join(lines))
    return folder


def as_label_maps(folder, names='void\nSky\ntree top\ncar\n'):
    write(folder / 'classes.txt', '\ufeff' + names)
    return pairs(folder, 'images/{name}', 'annotations/{}.png')


def as_ade(folder):
    numbered = ''.join(f'{i}: {name}\n' for i, name in enumerate(COLORS))
    return as_label_maps(folder, numbered)


@pytest.mark.parametrize('make', [as_camvid, as_class_dict, as_cvat_masks, as_label_maps, as_ade])
def test_masks_of_classes_arrive_to_the_pixel(make, tmp_path):
    dataset = bring_in(make(tmp_path / 'source'), tmp_path / 'out')
    assert dataset.task == 'segmentation'
    assert dataset.classes == ('Sky', 'tree top', 'car')
    if make not in (as_label_maps, as_ade):
        assert dataset.palette == tuple([*COLORS.values()][1:])
    assert maps_of(dataset).keys() == MAPS.keys()
    for name, values in maps_of(dataset).items():
        np.testing.assert_array_equal(values, MAPS[name] - np.uint8(1))  # void, 0, is 255


def maps_of(dataset):
    """The label maps that mmseg finds with the settings of the data set."""
    from mmseg.datasets import BaseSegDataset

    found = {}
    for split in dataset.counts:
        for entry in BaseSegDataset(**dataset.settings(split), pipeline=[]).load_data_list():
            values = np.array(Image.open(entry['seg_map_path']))
            found[os.path.basename(entry['img_path'])] = values
    return found


@pytest.mark.parametrize('white', [255, 1])
def test_binary_masks_are_background_and_foreground(white, tmp_path):
    pairs(tmp_path / 's', 'image/{name}', 'mask/{}.png', lambda v: (v > 1) * np.uint8(white))
    dataset = bring_in(tmp_path / 's')
    if white == 255:
        assert dataset.classes == ('background', 'foreground')
    for name, values in maps_of(dataset).items():
        np.testing.assert_array_equal(values, MAPS[name] > 1)


def test_colours_without_a_list_are_numbered(tmp_path):
    as_camvid(tmp_path)
    (tmp_path / 'label_colors.txt').unlink()
    dataset = bring_in(tmp_path)
    assert sorted(dataset.palette) == sorted(COLORS.values())
    for name, values in maps_of(dataset).items():
        colours = np.array(dataset.palette)[values]
        np.testing.assert_array_equal(colours, np.array([*COLORS.values()])[MAPS[name]])


# Classes of images.


def as_folders(folder, layout='{split}/{label}/{number}.jpg', count=10):
    rng = np.random.default_rng(0)
    for number in range(3 * count):
        label, split = CLASSES[number % 3], 'valid' if number < count // 2 else 'train'
        path = folder / layout.format(split=split, label=label, number=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(path)
    return folder


def labels_of(dataset):
    """The classes of images as mmpretrain reads them with the settings of the data set."""
    from mmpretrain.datasets import CustomDataset

    return {
        split: {
            os.path.relpath(entry['img_path'], dataset.images): dataset.classes[entry['gt_label']]
            for entry in CustomDataset(**dataset.settings(split), pipeline=[])
        }
        for split in dataset.counts
    }


@pytest.mark.parametrize(
    'layout',
    [
        '{split}/{label}/{number}.jpg',
        '{label}/{number}.jpg',
        'my photos/raw/{split}/{label}/day 1/{number}.jpg',
    ],
)
def test_class_folders_are_classes(layout, tmp_path):
    dataset = bring_in(as_folders(tmp_path / 'source', layout))
    assert (dataset.format, dataset.task) == ('folders', 'classification')
    assert dataset.classes == tuple(sorted(CLASSES))
    labels = labels_of(dataset)
    assert [len(labels[s]) for s in ('train', 'val')] == [25, 5] if 'split' in layout else [24, 6]
    for own in labels.values():
        assert all(f'/{label}/' in f'/{path}' for path, label in own.items())
        assert set(own.values()) == set(CLASSES)


def test_a_csv_of_labels_is_read_with_any_names_of_columns(tmp_path):
    as_folders(tmp_path, '{label}{number}.jpg')
    names = sorted(path.name for path in tmp_path.iterdir())
    rows = [f'{stem(name)};{re.sub("[0-9]+$", "", stem(name))}\r\n' for name in names]
    write(tmp_path / 'train.csv', '\ufeffID;Breed\r\n' + ''.join(rows))
    dataset = bring_in(tmp_path)
    assert (dataset.format, dataset.classes) == ('csv', tuple(sorted(CLASSES)))
    for own in labels_of(dataset).values():
        assert own
        assert all(path.startswith(label) for path, label in own.items())


# Splits.


def names_of(dataset, split):
    return {line.rpartition(' ')[0] for line in dataset.ann_file(split).read_text().splitlines()}


def test_a_split_is_drawn_from_the_seed_with_a_share_of_each_class(tmp_path):
    as_folders(tmp_path / 's', '{label}/{number}.jpg', count=20)
    first, again, other = (
        names_of(bring_in(tmp_path / 's', tmp_path / str(i), seed=seed), 'val')
        for i, seed in enumerate((3, 3, 4))
    )
    assert first == again != other
    assert len(first) == 12
    assert {sum(name.startswith(label) for name in first) for label in CLASSES} == {4}
    assert len(names_of(bring_in(tmp_path / 's', val=0.5), 'val')) == 30


def test_frames_of_a_video_and_copies_stay_on_one_side(tmp_path):
    rng = np.random.default_rng(1)
    rows = ['image,class']
    for video in range(12):
        for frame in range(4):
            name = f'cam{video}_{frame:04}.png'
            noise = rng.integers(0, 255, (24, 24, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / name)
            rows.append(f'{name},{"ab"[frame % 2]}')
    write(tmp_path / 'labels.csv', '\n'.join(rows))
    dataset = bring_in(tmp_path, tmp_path / 'out')
    videos = [{name.split('_')[0] for name in names_of(dataset, s)} for s in ('train', 'val')]
    assert videos[0].isdisjoint(videos[1])
    assert len(videos[1]) in (2, 3)


def test_near_duplicates_stay_on_one_side(tmp_path):
    rng = np.random.default_rng(1)
    rows = ['image,class']
    for number in range(20):
        small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / f'{number}.png')
        small.resize((90, 90), Image.Resampling.BILINEAR).save(tmp_path / f'x{number}.jpg')
        rows += [f'{number}.png,{"ab"[number % 2]}', f'x{number}.jpg,{"ab"[number % 2]}']
    write(tmp_path / 'labels.csv', '\n'.join(rows))
    for seed in range(3):
        dataset = bring_in(tmp_path, tmp_path / 'out', seed=seed)
        sides = [{re.search(r'\d+', n)[0] for n in names_of(dataset, s)} for s in ('train', 'val')]
        assert sides[0].isdisjoint(sides[1])
        assert len(names_of(dataset, 'val')) == 8


# Back to other formats.


@pytest.mark.parametrize('to', formats.WRITERS)
@pytest.mark.parametrize('copy', [False, True])
def test_what_is_written_for_other_tools_is_read_again(to, copy, tmp_path):
    as_coco(tmp_path / 'source')
    export(tmp_path / 'source', tmp_path / to, to, copy=copy)
    images = [
        path for path in (tmp_path / to).rglob('*') if path.suffix.lower() in ('.jpg', '.png')
    ]
    assert {path.is_symlink() for path in images} == {not copy}
    dataset = bring_in(tmp_path / to, tmp_path / 'out')
    assert dataset.format == to
    masks = to != 'voc'
    assert dataset.task == ('instances' if masks else 'detection')
    for split in ('train', 'val'):
        close(contents(dataset, split), expected(TRUTH, split, masks))


@pytest.mark.parametrize('to', formats.WRITERS)
def test_signs_of_xml_and_yaml_in_names_of_classes_survive(to, tmp_path):
    root = as_coco(tmp_path / 's')
    for path in root.rglob('*.json'):
        change(path, '"zebra"', '"a & <b>: \'c\' #1"')
    export(root, tmp_path / to, to)
    assert "a & <b>: 'c' #1" in bring_in(tmp_path / to).classes


boxes = st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(2, 20)] * 2)
objects = st.lists(st.tuples(st.sampled_from(CLASSES), boxes), max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    images=st.lists(objects, min_size=2, max_size=5), to=st.sampled_from(['yolo', 'voc', 'coco'])
)
def test_random_objects_survive_the_way_there_and_back(images, to, tmp_path_factory):
    folder = tmp_path_factory.mktemp('random')
    truth = []
    for number, found in enumerate(images):
        own = [(label, (x, y, x + w, y + h)) for label, (x, y, w, h) in found]
        truth.append((f'{number}.png', 64, 64, 'val' if number == 0 else 'train', own))
    if not any(entry[4] for entry in truth):
        return
    as_coco(folder / 'coco', truth)
    export(folder / 'coco', folder / 'there', to)
    dataset = bring_in(folder / 'there')
    for split in ('train', 'val'):
        close(contents(dataset, split), expected(truth, split, dataset.task == 'instances'))


# Real data.


@needs_samples
@pytest.mark.parametrize('to', formats.WRITERS)
def test_real_objects_survive_the_way_there_and_back(to, tmp_path):
    """Boxes exactly, polygons by their masks; YOLO has no crowds, and no masks with holes."""
    source = Path(SAMPLES) / 'coco_mini320'
    dataset = bring_in(source, tmp_path / 'ours')
    original = json.loads((source / 'instances_val2017.json').read_text())
    ours = json.loads(dataset.ann_file('val').read_text())
    keys = ('bbox', 'area', 'iscrowd', 'segmentation')
    assert [[a[k] for k in keys] for a in by_image(ours)] == [
        [a[k] for k in keys] for a in by_image(original)
    ]
    export(source, tmp_path / to, to)
    back = bring_in(tmp_path / to, tmp_path / 'back')
    for split in ('train', 'val'):
        there, here = contents(dataset, split), contents(back, split)
        assert there.keys() == here.keys()
        for name, objects in there.items():
            solid = [own for own in objects if to != 'yolo' or not own[3]]
            assert [own[::3] for own in sorted(here[name])] == [own[::3] for own in solid]
            if to != 'yolo':  # its masks give new boxes
                boxes = [own[1] for own in here[name]], [own[1] for own in solid]
                np.testing.assert_allclose(*boxes, atol=1e-6)
            if to == 'coco':
                assert here[name] == objects


def by_image(content):
    names = {image['id']: image['file_name'].rpartition('/')[2] for image in content['images']}
    return sorted(content['annotations'], key=lambda a: (names[a['image_id']], a['bbox']))


@needs_samples
def test_real_label_maps_keep_their_values(tmp_path):
    dataset = bring_in(Path(SAMPLES) / 'ade_real', tmp_path / 'out')
    assert {split: own['images'] for split, own in dataset.counts.items()} == {
        'train': 2,
        'val': 33,
    }
    originals = {
        path.stem: path for path in (Path(SAMPLES) / 'ade_real/annotations').rglob('*.png')
    }
    for name, values in maps_of(dataset).items():
        names = np.array([int(own.removeprefix('class_')) for own in dataset.classes])
        np.testing.assert_array_equal(names[values], np.array(Image.open(originals[stem(name)])))


@needs_samples
def test_real_masks_survive_as_png_files_of_instances_and_of_colours(tmp_path):
    source = Path(SAMPLES) / 'nuclei256'
    content = json.loads((source / 'instances_val_rle.json').read_text())
    masks = {}
    for image in content['images'][:12]:
        name = Path(image['file_name']).name
        own = [a for a in content['annotations'] if a['image_id'] == image['id']]
        values = np.zeros((image['height'], image['width']), np.uint16)
        for number, annotation in enumerate(own, 1):
            mask = np.frombuffer(bytes.fromhex(pixels(annotation, image)), np.uint8)
            values[mask.reshape(values.shape) > 0] = number
        present = np.unique(values)[1:]
        values = np.searchsorted(np.r_[0, present], values).astype(np.uint16)
        masks[name] = sorted((values == v).tobytes().hex() for v in range(1, len(present) + 1))
        save(tmp_path / 'masks' / f'{stem(name)}.png', values)
        (tmp_path / 'images').mkdir(exist_ok=True)
        (path,) = source.rglob(name)
        shutil.copy(path, tmp_path / 'images' / name)
    dataset = bring_in(tmp_path)
    assert (dataset.format, dataset.task) == ('instance-masks', 'instances')
    found = {name: own for s in ('train', 'val') for name, own in contents(dataset, s).items()}
    kept = {name: sorted(mask for _, _, mask, _ in own) for name, own in found.items()}
    assert kept == masks


# What labelling tools and file managers leave behind, and what is broken.


def test_trainval_of_pascal_voc_is_for_training_unless_val_names_it(tmp_path):
    lists = as_voc(tmp_path) / 'VOCdevkit/VOC2012/ImageSets'
    names = [stem(name) for name, *_ in TRUTH]
    write(lists / 'Main/trainval.txt', '\n'.join(names))
    write(lists / 'Layout/train.txt', '\n'.join(names))
    assert contents(bring_in(tmp_path), 'val').keys() == {'c.d.jpeg'}
    for split in ('train', 'val'):
        (lists / f'Main/{split}.txt').unlink()
    assert bring_in(tmp_path).counts['train']['images'] == 3


@pytest.mark.parametrize('format', ['yolo', 'voc', 'labelme', 'coco', 'cvat', 'via', 'csv'])
def test_files_of_other_programs_do_not_disturb(format, tmp_path):
    make, _ = OBJECTS[format]
    make(tmp_path / 'clean')
    root = make(tmp_path / 'messy')
    for path in [*root.rglob('*')]:
        if path.is_dir():
            (path / '.DS_Store').write_bytes(b'\0\0Bud1')
            (path / 'Thumbs.db').write_bytes(b'\xd0\xcf')
        elif path.suffix in ('.txt', '.json', '.xml', '.csv'):  # as Windows' editors save them
            text = path.read_text().replace('\r\n', '\n').replace('\n', '\r\n')
            path.write_bytes(b'\xef\xbb\xbf' + text.encode())
            shadow = root / '__MACOSX' / path.name
            shadow.parent.mkdir(exist_ok=True)
            shadow.write_bytes(b'\x00\x05\x16\x07 not text')
    write(root / 'README.roboflow.txt', 'Provided by a user\n\nLicense: CC BY 4.0')
    write(root / 'notes/classes of last year.docx', 'PK')
    write(root / 'requirements.txt', 'numpy\n')
    clean, messy = (
        bring_in(tmp_path / name, tmp_path / f'{name} out') for name in ('clean', 'messy')
    )
    assert (messy.format, messy.classes, messy.counts) == (
        clean.format,
        clean.classes,
        clean.counts,
    )
    for split in ('train', 'val'):
        assert contents(messy, split) == contents(clean, split)


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


VAL = 'instances_val2017.json'
BROKEN = {
    'text as coordinate': ('voc', 'c.d.xml', '<xmin>10<', '<xmin>ten<', 'ten'),
    'no coordinate': ('voc', 'c.d.xml', '<xmin>10</xmin>', '', 'c.d.xml'),
    'NaN': ('voc', 'c.d.xml', '<xmin>10<', '<xmin>nan<', 'finite'),
    'outside': ('voc', 'c.d.xml', '<ymin>10</ymin>', '<ymin>900</ymin>', 'negative'),
    'no class': ('voc', 'c.d.xml', '<name>zebra</name>', '<name> </name>', 'without a class'),
    'unknown number': ('yolo', 'c.d.txt', '0 ', '17 ', '17 of 3 names'),
    'pixels': ('yolo', 'c.d.txt', '0 0.3', '0 30.5', 'shares'),
    'few numbers': ('yolo', 'c.d.txt', '0 0.3', '0.3', 'numbers'),
    'short polygon': ('labelme', 'c.d.json', ', [20, 10], [20, 20], [15.0, 20]', '', 'point'),
    'a line': ('labelme', 'c.d.json', '"polygon"', '"linestrip"', 'linestrip'),
    'no category': ('coco', VAL, '"category_id": 7', '"category_id": 8', '8'),
    'half a box': ('coco', VAL, '"bbox": [10, 10, 10, 10]', '"bbox": [10]', 'box'),
    'crowd': ('coco', VAL, '"iscrowd": 0', '"iscrowd": "no"', 'iscrowd'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_bad_object_is_skipped_and_listed_with_its_file(case, tmp_path):
    format, name, old, new, fact = BROKEN[case]
    root = OBJECTS[format][0](tmp_path / 's')
    (path,) = root.rglob(name)
    change(path, old, new)
    dataset = bring_in(root, tmp_path / 'out')
    ((what, (place,)),) = [own for own in problems(dataset).items() if 'label file' not in own[0]]
    assert name in place
    assert fact in f'{what}: {place}'
    assert len(contents(dataset, 'val')['c.d.jpeg']) == 1
    written = json.loads((tmp_path / 'out/import.json').read_text())
    assert [place] in [own['where'] for own in written[0]['problems']]


ENTITIES = '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><annotations>&d;'
BROKEN_FILES = {
    'json': ('coco', VAL, '{"images"', '{{"images"', VAL),
    'yaml': ('yolo', 'data.yaml', 'names:', 'names: [', 'data.yaml'),
    'python in yaml': (
        'yolo',
        'data.yaml',
        'nc: 3',
        'nc: !!python/object/apply:os.abort []',
        'yaml',
    ),
    'xml': ('cvat', 'annotations.xml', '</meta>', '', 'annotations.xml'),
    'bomb': ('cvat', 'annotations.xml', '<annotations>', ENTITIES, 'document type'),
}


@pytest.mark.parametrize('case', BROKEN_FILES)
def test_a_broken_label_file_stops_with_its_name(case, tmp_path):
    format, name, old, new, fact = BROKEN_FILES[case]
    root = OBJECTS[format][0](tmp_path / 's')
    (path,) = root.rglob(name)
    change(path, old, new)
    with pytest.raises(UserError, match=fact):
        bring_in(root, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert not [*tmp_path.glob('.*')], 'temporary files are left'


def test_a_broken_label_file_of_one_image_is_skipped(tmp_path):
    as_voc(tmp_path / 's')
    (path,) = (tmp_path / 's').rglob('a b.xml')
    path.write_text(path.read_text()[:50])
    dataset = bring_in(tmp_path / 's')
    assert 'a b.xml' in str(problems(dataset)['label file cannot be read'])
    assert len(contents(dataset, 'train')) == 2


@pytest.mark.parametrize('name', ['../../secret.png', '/etc/secret.png', 'C:\\\\secret.png'])
def test_images_outside_of_the_folder_are_refused(name, tmp_path):
    root = as_coco(tmp_path / 'a/b/s')
    Image.new('RGB', (50, 40)).save(tmp_path / 'a/secret.png')
    change(root / 'annotations/instances_val2017.json', 'c.d.jpeg', name)
    dataset = bring_in(root, tmp_path / 'out')
    assert 'secret.png' in str(problems(dataset)['image is outside the folder'])
    assert 'secret' not in (tmp_path / 'out/train.json').read_text()


def test_labels_for_another_size_and_bad_images_are_skipped(tmp_path):
    root = as_coco(tmp_path / 's')
    Image.new('RGB', (8, 6)).save(root / 'train2017/a b.jpg')
    (root / 'train2017/straße.JPG').write_bytes(b'no image')
    dataset = bring_in(root)
    assert '(8, 6)' in str(problems(dataset)['labels are for another size of the image'])
    assert 'straße.JPG' in str(problems(dataset)['image cannot be read'])
    assert dataset.counts['train'] == {'images': 1, 'objects': 0}


def test_a_second_label_file_of_an_image_is_listed(tmp_path):
    root = as_voc(tmp_path / 's')
    (path,) = root.rglob('a b.xml')
    shutil.copy(path, root / 'a b.xml')
    dataset = bring_in(root)
    assert 'a b.xml' in str(problems(dataset)['second label file of an image'])


def test_images_without_labels_are_listed(tmp_path):
    root = as_labelme(tmp_path / 's')
    Image.new('RGB', (8, 6)).save(root / 'train/forgotten.jpg')
    dataset = bring_in(root)
    assert 'train/forgotten.jpg' in str(problems(dataset)['image without labels: not used'])


def test_the_command_shows_what_was_read_and_where_it_is(tmp_path):
    root = as_voc(tmp_path / 'my labels')
    (path,) = root.rglob('c.d.xml')
    change(path, '<xmin>10<', '<xmin>ten<')
    output = succeed('convert_dataset.py', root)
    assert 'Pascal VOC' in output
    assert 'c.d.xml' in output
    assert str(root / 'gcvit_mm') in output
    dataset = Dataset.load(root / 'gcvit_mm')
    assert dataset.counts == {
        'train': {'images': 3, 'objects': 3},
        'val': {'images': 1, 'objects': 1},
    }
    error = fail('check_dataset.py', root)
    assert 'Pascal VOC' in error
    assert f"gcvit-mm convert-dataset '{root}'" in error
    assert 'other files' in fail('convert_dataset.py', root, tmp_path, '--to', 'yolo')


def test_the_options_of_the_command_are_the_formats():
    assert tuple(formats.FORMATS) == LABEL_FORMATS
    assert tuple(formats.WRITERS) == LABEL_WRITERS
    page = (ROOT / 'docs/formats.md').read_text()
    assert re.findall(r'^\| `([a-z][a-z-]*)` \|', page, re.M) == list(LABEL_FORMATS)


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    def error(folder, dest=None, **options):
        with pytest.raises(UserError) as raised:
            bring_in(folder, dest, **options)
        return str(raised.value)

    root = as_voc(tmp_path / 's')
    assert 'classification' in error(root, task='classification')
    assert 'masks of objects' in error(root, task='instances')
    assert 'yolo' in error(root, format='yolo')
    assert 'not a folder' in error(tmp_path / 'no such')
    (tmp_path / 'bare').mkdir()
    assert 'no images' in error(tmp_path / 'bare')
    Image.new('RGB', (8, 6)).save(tmp_path / 'bare/1.jpg')
    assert 'docs/formats.md' in error(tmp_path / 'bare')
    assert '1 .jpg' in error(tmp_path / 'bare')
    assert 'already' in error(bring_in(root).root)
    assert 'other files' in error(root, tmp_path / 'bare')
    assert 'share' in error(root, val=1.5)


# Shapes that only some tools have.


def disk(x, y, rx, ry, height=40, width=50):
    rows, columns = np.mgrid[:height, :width] + 0.5
    return ((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2 <= 1


def block(left, top, right, bottom):
    mask = np.zeros((40, 50), bool)
    mask[top:bottom, left:right] = True
    return mask


NOTCH = block(10, 5, 30, 25) & ~block(10, 5, 14, 9)
HOLE = block(10, 5, 30, 25) & ~block(15, 10, 20, 20)
PNG = io.BytesIO()
Image.fromarray(NOTCH[5:25, 10:30]).save(PNG, 'PNG')
PNG_64 = base64.b64encode(PNG.getvalue()).decode()
RUNS = np.flatnonzero(np.diff(NOTCH[5:25, 10:30].ravel(), prepend=~NOTCH[5, 10]))
CVAT_RUNS = ', '.join(map(str, np.diff([*RUNS, 400])))


def labelme(*shapes):
    shapes = [{'label': 'x', **shape} for shape in shapes]
    return {f'{i}.json': {'imagePath': f'{i}.png', 'shapes': shapes} for i in (0, 1)}


def cvat(node):
    images = ''.join(
        f'<image id="{i}" name="{i}.png" width="50" height="40">{node}</image>' for i in (0, 1)
    )
    return {'a.xml': f'<annotations>{images}</annotations>'}


def via(**shape):
    region = {'shape_attributes': shape, 'region_attributes': {'kind': {'x': True}}}
    return {'v.json': {f'{i}': {'filename': f'{i}.png', 'regions': {'0': region}} for i in (0, 1)}}


def supervisely(kind, **entry):
    entry = {'classTitle': 'x', 'geometryType': kind, **entry}
    content = {'size': {'width': 50, 'height': 40}, 'objects': [entry]}
    return {f'{i}.png.json': content for i in (0, 1)}


def lay(folder, label_files):
    """Write label files and their two images."""
    for name, content in label_files.items():
        write(folder / name, content)
    for i in (0, 1):
        Image.new('RGB', (50, 40), (i, 0, 0)).save(folder / f'{i}.png')
    return folder


def square(x, y, right, bottom):
    return [[x, y], [right, y], [right, bottom], [x, bottom]]


ELLIPSE = '<ellipse label="x" cx="25" cy="20" rx="8" ry="16" rotation="90"></ellipse>'
TURNED = '<box label="x" xtl="15" ytl="18" xbr="35" ybr="22" rotation="90.0"></box>'
MASK = f'<mask label="x" rle="{CVAT_RUNS}" left="10" top="5" width="20" height="20"></mask>'
WITH_HOLE = {'exterior': square(10, 5, 30, 25), 'interior': [square(15, 10, 20, 20)]}
BITMAP = {'origin': [10, 5], 'data': base64.b64encode(zlib.compress(PNG.getvalue())).decode()}
SHAPES = {
    'labelme circle': (
        labelme({'shape_type': 'circle', 'points': [[20, 20], [20, 30]]}),
        disk(20, 20, 10, 10),
    ),
    'labelme mask': (
        labelme({'shape_type': 'mask', 'points': [[10, 5], [29, 24]], 'mask': PNG_64}),
        NOTCH,
    ),
    'labelme group': (
        labelme(*({'group_id': 0, 'points': square(x, 5, x + 9, 9)} for x in (3, 20))),
        block(3, 5, 12, 9) | block(20, 5, 29, 9),
    ),
    'cvat ellipse': (cvat(ELLIPSE), disk(25, 20, 16, 8)),
    'cvat turned box': (cvat(TURNED), block(23, 10, 27, 30)),
    'cvat mask': (cvat(MASK), NOTCH),
    'via circle': (via(name='circle', cx=20, cy=20, r=10), disk(20, 20, 10, 10)),
    'via ellipse': (via(name='ellipse', cx=25, cy=20, rx=16, ry=8, theta=0), disk(25, 20, 16, 8)),
    'supervisely hole': (supervisely('polygon', points=WITH_HOLE), HOLE),
    'supervisely bitmap': (supervisely('bitmap', bitmap=BITMAP), NOTCH),
}


@pytest.mark.parametrize('case', SHAPES)
def test_shapes_of_tools_become_masks_that_yolo_keeps(case, tmp_path):
    label_files, truth = SHAPES[case]
    root = lay(tmp_path, label_files)
    dataset = bring_in(root, tmp_path / 'out')
    assert (dataset.format, dataset.classes) == (case.split()[0], ('x',))
    exact = 'mask' in case or 'bitmap' in case
    assert overlap(dataset, truth) >= (1 if exact else 0.93)
    with TemporaryDirectory() as folder:
        export(root, folder, 'yolo')
        assert overlap(bring_in(folder), truth) >= 0.93


def overlap(dataset, truth):
    """The IoU of the only object of the validation image with a mask."""
    ((_, _, mask, _),) = contents(dataset, 'val').popitem()[1]
    ours = np.frombuffer(bytes.fromhex(mask), np.uint8).reshape(40, 50) > 0
    return (ours & truth).sum() / (ours | truth).sum()


# Other habits of tools.


def test_the_parent_category_of_roboflow_is_no_class(tmp_path):
    root = as_coco(tmp_path)
    for path in root.rglob('*.json'):
        content = json.loads(path.read_text())
        for category in content['categories']:
            category['supercategory'] = 'fruit and animals'
        first = {'id': 0, 'name': 'fruit and animals', 'supercategory': 'none'}
        content['categories'].insert(0, first)
        write(path, content)
    assert bring_in(root).classes == tuple(CLASSES)


def test_yolo_files_beside_images_have_their_names_in_classes_txt(tmp_path):
    as_yolo(tmp_path, layout='{name}')
    (tmp_path / 'data.yaml').unlink()
    (tmp_path / 'classes.txt').write_bytes('\r\n'.join(CLASSES).encode('utf-16'))
    dataset = bring_in(tmp_path)
    assert dataset.classes == tuple(CLASSES)
    assert sum(own['images'] for own in dataset.counts.values()) == 4


def test_objects_across_the_border_keep_the_part_inside(tmp_path):
    truth = [
        (f'{i}.png', 50, 40, s, [('zebra', (30, 20, 90, 70))])
        for i, s in enumerate(('train', 'val'))
    ]
    for make in (as_coco, as_voc):
        dataset = bring_in(make(tmp_path / make.__name__, truth))
        (own,) = contents(dataset, 'val')['1.png']
        assert own[1] == (30, 20, 20, 20)
        assert 'crosses the image border' in str(problems(dataset))


@pytest.mark.parametrize(
    'folders', [('with_mask', 'without_mask'), ('train station', 'test tube'), ('gt', 'bmw')]
)
def test_names_of_classes_are_not_taken_for_splits_or_masks(folders, tmp_path):
    for folder in folders:
        scene(tmp_path, f'{folder}/{{name}}')
    dataset = bring_in(tmp_path, format='folders')
    assert dataset.classes == tuple(sorted(folders))
    if 'gt' not in folders:
        assert bring_in(tmp_path).classes == dataset.classes


def test_objects_with_masks_become_label_maps(tmp_path):
    dataset = bring_in(as_labelme(tmp_path), task='segmentation')
    assert dataset.classes == ('background', *sorted(CLASSES))
    values = maps_of(dataset)['c.d.jpeg']
    assert (values[10:20, 10:20] == dataset.classes.index('zebra')).all()
    assert (values[:5] == 0).all()


def test_copies_make_the_data_independent_of_the_source(tmp_path):
    bring_in(as_coco(tmp_path / 's'), tmp_path / 'out', copy=True)
    shutil.rmtree(tmp_path / 's')
    shutil.move(tmp_path / 'out', tmp_path / 'moved')
    dataset = Dataset.load(tmp_path / 'moved')
    assert contents(dataset, 'val').keys() == {'c.d.jpeg'}
    (tmp_path / 'moved/dataset.json').write_text('{}')
    with pytest.raises(UserError, match='convert-dataset'):
        Dataset.load(tmp_path / 'moved')


def nodes(content, place=()):
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from nodes(value, (*place, key))


@pytest.mark.parametrize('make', [as_coco, as_labelme, as_via, as_supervisely, as_panoptic])
def test_any_value_anywhere_is_skipped_or_an_error_of_one_line(make, tmp_path):
    random = Random(make.__name__)
    root = make(tmp_path / 's')
    files = [*root.rglob('*.json')]
    for _ in range(12):
        path = random.choice(files)
        text = path.read_text()
        content = json.loads(text)
        *above, last = random.choice([*nodes(content)])
        node = content
        for key in above:
            node = node[key]
        node[last] = random.choice(
            [None, '', -1, 1e308, float('nan'), [], {}, 'x', [[1]], '9' * 5000]
        )
        path.write_text(json.dumps(content))
        try:
            bring_in(root, tmp_path / 'out')
        except UserError as error:
            assert '\n' not in str(error)
        path.write_text(text)


@pytest.mark.parametrize('make', [as_yolo, as_labelme])
def test_what_is_written_passes_the_check_of_data(make, tmp_path):
    dataset = bring_in(make(tmp_path / 's'))
    masks = dataset.task == 'instances'
    name = 'mask_rcnn_gcvit_nano_shapes' if masks else 'retinanet_gcvit_tiny_coco'
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.update(dataset.settings(split))
    cfg.val_evaluator.ann_file = str(dataset.ann_file('val'))
    if not masks:
        cfg.model.bbox_head.num_classes = len(CLASSES)
    reports = check_datasets(cfg, ('train', 'val'))
    assert not [what for report in reports for what in report.problems if what[0] == 'error']
    assert [len(report.digests) for report in reports] == [3, 1]


RECTANGLES = {
    'labelme': labelme({'shape_type': 'rectangle', 'points': [[30, 5], [10, 25]]}),
    'labelme 6': labelme({'shape_type': 'rectangle', 'points': square(10, 5, 30, 25)}),
    'cvat': cvat('<box label="x" xtl="10" ytl="5" xbr="30" ybr="25"></box>'),
    'via': via(name='rect', x=10, y=5, width=20, height=20),
    'supervisely': supervisely('rectangle', points={'exterior': [[30, 25], [10, 5]]}),
}


@pytest.mark.parametrize('tool', RECTANGLES)
def test_rectangles_are_boxes_from_whatever_corner(tool, tmp_path):
    dataset = bring_in(lay(tmp_path, RECTANGLES[tool]))
    assert dataset.task == 'detection'
    assert contents(dataset, 'val').popitem()[1] == [('x', (10, 5, 20, 20), '', 0)]


@pytest.mark.parametrize('to', formats.WRITERS)
def test_crowds_are_kept_or_listed(to, tmp_path):
    root = as_coco(tmp_path / 's')
    change(root / 'annotations/instances_val2017.json', '"iscrowd": 0', '"iscrowd": 1')
    report, *_ = export(root, tmp_path / to, to)
    found = contents(bring_in(tmp_path / to, tmp_path / 'out'), 'val')['c.d.jpeg']
    assert [own[3] for own in found] == ([0] if to == 'yolo' else [1, 0])
    assert ('c.d.jpeg' in str(report.problems)) == (to == 'yolo')


def test_tags_of_cvat_are_classes_of_images(tmp_path):
    (text,) = cvat('<tag label="x" source="manual"></tag>').values()
    dataset = bring_in(lay(tmp_path, {'a.xml': text.replace('x"', 'y"', 1)}))
    assert (dataset.task, dataset.classes) == ('classification', ('x', 'y'))


@pytest.mark.parametrize('suffix', ['jpg', 'tif'])
def test_images_turned_by_exif_are_read_as_training_does(suffix, tmp_path):
    (text,) = RECTANGLES['cvat'].values()
    root = lay(tmp_path, {'a.xml': text.replace('.png', f'.{suffix}')})
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in (0, 1):
        (root / f'{i}.png').unlink()
        Image.new('RGB', (40, 50), (i, 0, 0)).save(root / f'{i}.{suffix}', exif=exif)
    dataset = bring_in(root)
    (image,) = json.loads(dataset.ann_file('val').read_text())['images']
    assert (image['width'], image['height']) == (50, 40)


# --- Tiles ------------------------------------------------------------------------------------


def large_scene(folder, rng):
    """Images with polygons, run lengths and a crowd, and all masks (n, H, W) of each."""
    content = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'cell'}]}
    masks = {}
    for number, (height, width) in enumerate([(150, 210), (60, 50), (200, 64)] * 4, 1):
        name = f'{number}.{"png" if number % 2 else "jpg"}'
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        content['images'].append(
            {'id': number, 'file_name': name, 'width': width, 'height': height}
        )
        masks[name] = []
        for kind in ('polygon', 'polygon', 'run lengths', 'crowd'):
            middle = rng.uniform(0.1, 0.9, 2) * (width, height)
            angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
            outline = middle + rng.uniform(5, 25) * np.c_[np.cos(angles), np.sin(angles)]
            outline = outline.clip(0, (width, height))
            mask = [outline.ravel().tolist()]
            rle = mask_utils.merge(mask_utils.frPyObjects(mask, height, width))
            dense = mask_utils.decode(rle)
            masks[name].append(dense)
            annotation = {'id': len(content['annotations']) + 1, 'image_id': number}
            annotation |= {'category_id': 1, 'iscrowd': int(kind == 'crowd')}
            annotation['segmentation'] = mask
            if kind != 'polygon':
                annotation['segmentation'] = {'size': [height, width], 'counts': runs(dense)}
            annotation['bbox'] = mask_utils.toBbox(rle).tolist()
            annotation['area'] = float(dense.sum())
            content['annotations'].append(annotation)
    write(folder / 'instances.json', content)
    return masks


def runs(mask):
    values = mask.T.ravel()
    edges = np.flatnonzero(np.diff(values)) + 1
    lengths = np.diff([0, *edges, values.size]).tolist()
    return lengths if values[0] == 0 else [0, *lengths]


def test_tiles_have_the_pixels_and_masks_of_their_place(tmp_path):
    masks = large_scene(tmp_path / 'in', np.random.default_rng(0))
    data = bring_in(tmp_path / 'in', tmp_path / 'out', tile=64)
    covered = {}
    for split in ('train', 'val'):
        content = json.loads(data.ann_file(split).read_text())
        for image in content['images']:
            source, x, y = re.fullmatch(r'(.+)_(\d+)_(\d+)\.png', image['file_name']).groups()
            x, y, width, height = int(x), int(y), image['width'], image['height']
            whole = np.array(Image.open(tmp_path / 'in' / source))
            part = np.array(Image.open(data.images / image['file_name']))
            assert np.array_equal(part, whole[y : y + height, x : x + width])
            seen = covered.setdefault(source, (split, np.zeros(whole.shape[:2], bool)))
            assert seen[0] == split  # tiles of an image are on one side
            seen[1][y : y + height, x : x + width] = True
            expected = [one[y : y + height, x : x + width] for one in masks[source]]
            expected = [
                (own, one) for own, one in zip(expected, masks[source], strict=True) if own.any()
            ]
            found = [a for a in content['annotations'] if a['image_id'] == image['id']]
            assert len(found) == len(expected)
            for own, (part, one) in zip(found, expected, strict=True):
                rle = own['segmentation']
                if isinstance(rle, list):
                    rle = mask_utils.merge(mask_utils.frPyObjects(rle, height, width))
                assert np.array_equal(mask_utils.decode(rle), part)
                x1, y1, _, h = own['bbox']
                rows, columns = part.nonzero()
                assert abs(x1 - columns.min()) <= 1
                assert abs(y1 + h - rows.max() - 1) <= 1
                is_crowd = one is masks[source][3]
                assert own['iscrowd'] == (is_crowd or part.sum() < 0.3 * one.sum())
    assert all(seen.all() for _, seen in covered.values())
    assert covered.keys() == masks.keys()


def test_tiles_of_label_maps_and_boxes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(5):
        for kind, values in (('images', 256), ('labels', 3)):
            pixels = rng.integers(0, values, (90, 130), np.uint8)
            (tmp_path / 'in' / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / 'in' / kind / f'{number}.png')
    data = bring_in(tmp_path / 'in', tmp_path / 'out', tile=64)
    tiles = [
        line for split in ('train', 'val') for line in data.ann_file(split).read_text().split()
    ]
    assert len(tiles) == 5 * 2 * 3
    for name in tiles:
        number, x, y = map(int, re.findall(r'\d+', name))
        whole = np.array(Image.open(tmp_path / 'in/labels' / f'{number}.png'))
        part = np.array(Image.open(tmp_path / 'out/label_maps' / f'{name}.png'))
        assert np.array_equal(part, whole[y : y + 64, x : x + 64])
    assert len(list((tmp_path / 'out/label_maps').rglob('*.png'))) == len(tiles)

    as_voc(tmp_path / 'voc')
    boxes = bring_in(tmp_path / 'voc', tmp_path / 'cut', tile=32)
    whole = bring_in(tmp_path / 'voc', tmp_path / 'whole')
    for split in ('train', 'val'):
        cut, full = (json.loads(one.ann_file(split).read_text()) for one in (boxes, whole))
        assert len(cut['images']) >= len(full['images'])
        for image in cut['images']:
            for own in cut['annotations']:
                if own['image_id'] == image['id']:
                    x, y, w, h = own['bbox']
                    assert min(x, y, image['width'] - x - w, image['height'] - y - h) >= 0
                    assert min(w, h) >= 1


@pytest.mark.parametrize('tile', [0, 0.5, -3, 31])
def test_tiles_that_are_too_small_are_refused(tile, tmp_path):
    as_voc(tmp_path / 'voc')
    with pytest.raises(UserError, match='32 pixels'):
        bring_in(tmp_path / 'voc', tmp_path / 'out', tile=tile)
    assert not (tmp_path / 'out').exists()
