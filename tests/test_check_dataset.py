"""Each kind of damage to a data set is found, with its file named; sound data have no error."""

import copy
import io
import json
import os
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from command_line import NANO, ROOT, call, on
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image
from pycocotools import mask as mask_utils

from gcvit_mm.datasets.check import check_datasets, print_reports, write_reports
from gcvit_mm.datasets.check.images import read_image
from gcvit_mm.datasets.check.objects import unpack as _unpack
from gcvit_mm.datasets.load_label_map import labels_of_values
from gcvit_mm.datasets.preflight import check_data
from gcvit_mm.errors import UserError

TRAINING = 'annotations/instances_training.json'
VALIDATION = 'annotations/instances_validation.json'
SHAPES = ['disk', 'box', 'star']
SAMPLES = os.environ.get('GCVIT_MM_SAMPLES')
needs_samples = pytest.mark.skipif(not SAMPLES, reason='GCVIT_MM_SAMPLES is not set')


@cache
def read_config(name):
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def configure(name, options):
    cfg = copy.deepcopy(read_config(name))
    cfg.merge_from_dict(options)
    return cfg


def of_splits(splits=('train', 'val', 'test'), **options):
    return {f'{s}_dataloader.dataset.{key}': v for s in splits for key, v in options.items()}


def instances(data, **more):
    """The nano detector's config on a copy of the shapes."""
    ann_file = str(data / 'annotations/instances_validation.json')
    options = of_splits(data_root=str(data))
    options |= {'val_evaluator.ann_file': ann_file, 'test_evaluator.ann_file': ann_file}
    return configure('mask_rcnn_gcvit_nano_shapes', options | more)


def maps(data, **more):
    """The nano segmenter's config on a copy of the shapes."""
    return configure('upernet_gcvit_nano_shapes', of_splits(data_root=str(data)) | more)


def labels(root, **more):
    """A classifier's config on folders of the shapes' names."""
    options = {'model.head.num_classes': 3, 'data_preprocessor.num_classes': 3}
    options |= of_splits(data_root=str(root), metainfo=dict(classes=sorted(SHAPES)))
    return configure('gcvit_xxtiny_imagenet', options | more)


def problems(cfg, *splits):
    """What a check finds, as lines: severity, split, problem, place."""
    return [
        f'{severity} [{report.name}] {what}: {place}'
        for report in check_datasets(cfg, splits or ('train', 'val', 'test'))
        for (severity, what), places in report.problems.items()
        for place in places
    ]


def errors(cfg, *splits):
    return [line for line in problems(cfg, *splits) if line.startswith('error')]


def has(lines, *parts):
    """Whether one of the lines has all of some texts."""
    return any(all(part in line for part in parts) for line in lines)


@pytest.fixture
def data(tiny_shapes, tmp_path):
    """A copy of the shapes, to be damaged."""
    return Path(shutil.copytree(tiny_shapes, tmp_path / 'my data'))


@pytest.fixture
def folders(tmp_path):
    """Class folders of two small images each, for training and for validation."""
    rng = np.random.default_rng(0)
    for name in (f'{split}/{shape}/{i}.png' for split in ('train', 'val') for shape in SHAPES
                 for i in range(2)):  # fmt: skip
        path = tmp_path / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).save(path)
    return tmp_path / 'photos'


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- Sound data -------------------------------------------------------------------------------


def test_shapes_are_sound_instances_and_are_counted_as_they_are(tiny_shapes):
    train, val = check_datasets(instances(tiny_shapes))
    assert not train.count('error') and not val.count('error')
    assert (train.name, val.name) == ('train', 'val, test')
    content = json.loads((tiny_shapes / TRAINING).read_text())
    single = [a for a in content['annotations'] if not a['iscrowd']]
    crowds = [a for a in content['annotations'] if a['iscrowd']]
    assert sum(row['objects'] for row in train.classes.values()) == len(single)
    assert sum(row['crowds'] for row in train.classes.values()) == len(crowds) > 0
    stars = [a['image_id'] for a in single if a['category_id'] == 3]
    assert train.classes['star'] == {'objects': len(stars), 'crowds': 0, 'images': len({*stars})}
    assert train.sizes['box width'] == [a['bbox'][2] for a in single]


def test_shapes_are_sound_label_maps_and_are_counted_as_they_are(tiny_shapes):
    train, val = check_datasets(maps(tiny_shapes))
    assert not train.count('error') and not val.count('error')
    files = sorted((tiny_shapes / 'annotations/training').iterdir())
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    for label, row in enumerate(train.classes.values()):
        assert row['% of pixels'] == pytest.approx(100 * (pixels == label).mean(), rel=0.01)
        assert row['images'] == (pixels == label).any((1, 2)).sum()


def test_sound_folders_of_classes_are_counted(folders):
    train, val = check_datasets(labels(folders))
    assert not train.problems and not val.problems
    assert train.classes == {name: {'images': 2} for name in SHAPES}


@needs_samples
@pytest.mark.parametrize(
    ('config', 'options', 'images'),
    [
        (
            'mask_rcnn_gcvit_xxtiny_coco',
            of_splits(['val'], data_root='coco_small', ann_file='instances.json')
            | {'val_dataloader.dataset.data_prefix.img': 'images'},
            54,
        ),
        (
            'mask_rcnn_gcvit_xxtiny_coco',
            of_splits(['val'], data_root='coco_mini320', ann_file='instances_val2017.json'),
            94,
        ),
        (
            'mask_rcnn_gcvit_xxtiny_nuclei',
            of_splits(['val'], data_root='nuclei256', ann_file='instances_val_rle.json'),
            67,
        ),
        (
            'upernet_gcvit_tiny_ade20k',
            of_splits(['val'], data_root='ade_real')
            | of_splits(['val'], data_prefix=dict(img_path='images', seg_map_path='annotations')),
            35,
        ),
    ],
)
def test_real_data_have_no_error(config, options, images):
    root = 'val_dataloader.dataset.data_root'
    cfg = configure(config, options | {root: f'{SAMPLES}/{options[root]}'})
    cfg.val_evaluator.pop('ann_file', None)
    (report,) = check_datasets(cfg, ['val'])
    assert not report.count('error'), report.problems
    assert len(report.digests) == images


@needs_samples
def test_shares_of_camvid_are_those_published_with_it():
    cfg = configure('upernet_gcvit_xxtiny_camvid', of_splits(data_root=f'{SAMPLES}/camvid'))
    (report,) = check_datasets(cfg, ['val'])
    assert not report.problems
    stats = json.loads(Path(SAMPLES, 'camvid/classes.json').read_text())['stats']['validation']
    for name, row in report.classes.items():
        share = 100 * stats['pixels'][name] / (stats['images'] * 480 * 360)
        assert row['% of pixels'] == pytest.approx(share, rel=0.01)


# --- Images -----------------------------------------------------------------------------------


@pytest.mark.parametrize('progressive', [False, True])
def test_a_cut_image_is_bad_wherever_training_finds_it_bad(progressive, tiny_shapes, tmp_path):
    loader = TRANSFORMS.build(dict(type='LoadWholeImage'))
    picture = Image.open(tiny_shapes / 'images/training/000000.jpg').resize((160, 130))
    whole = io.BytesIO()
    picture.save(whole, 'JPEG', progressive=progressive)
    path = tmp_path / 'cut.jpg'
    verdicts = set()
    for missing in [0, 1, 2, 3, 20, *range(100, len(whole.getvalue()), 400)]:
        path.write_bytes(whole.getvalue()[: len(whole.getvalue()) - missing])
        try:
            loader({'img_path': str(path)})
            loads = True
        except UserError:
            loads = False
        assert (not isinstance(read_image(str(path)), str)) == loads, missing
        verdicts.add(loads)
    assert verdicts == {True, False}


def test_the_size_of_a_turned_photo_is_that_which_training_sees(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / 'turned.jpg'
    Image.new('RGB', (40, 24)).save(path, exif=exif)
    image = read_image(str(path))
    seen = TRANSFORMS.build(dict(type='LoadWholeImage'))({'img_path': str(path)})
    assert (image.height, image.width) == seen['img_shape'] == (40, 24)


@pytest.mark.parametrize('config', [instances, maps])
def test_cut_and_missing_images_are_named(config, data):
    cut(data / 'images/training/000003.jpg')
    (data / 'images/validation/000001.jpg').write_text('no image')
    if config is instances:
        (data / 'images/training/000005.jpg').unlink()
    found = errors(config(data))
    assert has(found, '[train] image cannot be read whole', 'training/000003.jpg: ', 'truncated')
    assert has(found, '[val, test]', 'images/validation/000001.jpg: not an image')
    assert len(found) == (3 if config is instances else 2)
    if config is instances:
        assert has(found, '000005.jpg: No such file')


def test_training_images_in_the_validation_data_are_a_warning(data):
    first = data / 'images/training/000000.jpg'
    shutil.copy(first, data / 'images/validation/000002.jpg')
    shutil.copy(first, data / 'images/training/000004.jpg')
    found = problems(instances(data))
    assert has(found, 'warning [val, test] image of the training data', 'validation/000002.jpg')
    assert has(found, 'note [train] duplicate image', 'training/000004.jpg')


def test_one_data_set_for_training_and_validation_is_a_warning(data):
    folders = dict(img_path='images/training', seg_map_path='annotations/training')
    cfg = maps(data, **of_splits(['val'], data_prefix=folders))
    assert has(problems(cfg), 'warning [train, val] identical data in train and val')


def test_missing_data_are_named_for_each_split_and_evaluator(tmp_path):
    found = errors(instances(tmp_path / 'gone'))
    assert has(found, '[train]', f'data folder {tmp_path}/gone')
    assert has(found, '[val, test]', f'data folder {tmp_path}/gone')
    assert has(found, '(val_evaluator) does not exist') and has(found, '(test_evaluator)')


def test_an_evaluator_of_other_images_is_an_error_even_if_their_ids_are_equal(data):
    other, copied = data / 'annotations/other.json', data / 'annotations/copy.json'
    for path in (other, copied):
        shutil.copy(data / VALIDATION, path)
    edit(
        other, lambda content: [i.update(file_name='x' + i['file_name']) for i in content['images']]
    )
    cfg = instances(data, **{'val_evaluator.ann_file': str(other)})
    assert has(
        errors(cfg), 'the evaluator has 5 images, the data loader 5', '0 are in both', str(other)
    )
    assert not errors(instances(data, **{'val_evaluator.ann_file': str(copied)}))


def test_wrapped_data_sets_are_each_checked(data):
    cfg = instances(data)
    inner = cfg.train_dataloader.dataset
    other = copy.deepcopy(inner)
    other.update(cfg.val_dataloader.dataset)
    repeated = dict(type='RepeatDataset', times=2, dataset=inner)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[repeated, other])
    cut(data / 'images/training/000001.jpg')
    cut(data / 'images/validation/000001.jpg')
    found = errors(cfg, 'train')
    assert has(found, '[train 1]', 'validation/000001.jpg')
    assert has(found, '[train 2]', 'training/000001.jpg')
    assert len(found) == 2


def test_a_config_without_the_data_loaders_is_refused(data):
    cfg = instances(data)
    cfg.pop('test_dataloader')
    with pytest.raises(UserError, match='no data loader for test'):
        check_datasets(cfg, ['test'])


def test_of_annotations_in_other_formats_the_images_are_checked(folders):
    names = ('train/box/0.png', 'train/box/1.png')
    content = dict(metainfo={}, data_list=[dict(img_path=name, gt_label=0) for name in names])
    (folders / 'list.json').write_text(json.dumps(content))
    cfg = labels(folders)
    dataset = dict(type='BaseDataset', data_root=str(folders), ann_file='list.json')
    cfg.train_dataloader.dataset = dataset
    cut(folders / names[1])
    found = problems(cfg, 'train')
    assert has(found, 'warning [train] annotations are not checked')
    assert has(found, 'error [train] image cannot be read whole', names[1])


# --- Objects ----------------------------------------------------------------------------------


def update(**values):
    """A change of the first annotation that is no crowd."""

    def change(content):
        next(a for a in content['annotations'] if not a['iscrowd']).update(values)

    return change


def crowd(**values):
    def change(content):
        next(a for a in content['annotations'] if a['iscrowd']).update(values)

    return change


def run_lengths(counts, size=(64, 64)):
    return dict(segmentation=dict(counts=counts, size=list(size)))


def entry(key, position, **values):
    return lambda content: content[key][position].update(values)


def polygon(*points):
    return dict(segmentation=[[float(value) for value in points]])


ON_BOARD = (10, 10, 30, 10, 30, 30)
DAMAGE = {
    'error: duplicate image id': entry('images', 1, id=0),
    'warning: image listed twice: 000000.jpg': entry('images', 1, file_name='000000.jpg'),
    'error: images: width is not a whole number of pixels: images[2]': entry(
        'images', 2, width='64'
    ),
    'error: images: file_name is not the path of a file: images[2]': entry(
        'images', 2, file_name=None
    ),
    'error: width and height differ: images/training/000002.jpg: 63 x 64, file': entry(
        'images', 2, width=63
    ),
    'error: duplicate annotation id: annotation 3': entry('annotations', 0, id=3),
    'error: annotation of an unknown image: ': update(image_id=99),
    'error: annotation of an unknown category: ': update(category_id=9),
    'error: annotations: bbox is not four finite numbers: annotations[0]': entry(
        'annotations', 0, bbox=None
    ),
    'error: annotations: area is not a number: annotations[0]': entry('annotations', 0, area='1'),
    'error: duplicate category id: 1': entry('categories', 1, id=1),
    'error: config does not match the data: the classes of the config do not match': entry(
        'categories', 1, name='cube'
    ),
    'error: config does not match the data: annotation file': lambda c: c.pop('images'),
    'error: bbox is not four finite numbers: annotations[': update(bbox=[1, 2, float('nan'), 4]),
    'error: box of negative width or height: images/training/': update(bbox=[9, 9, -3, 4]),
    'warning: box of less than a pixel: mmdet skips it': update(bbox=[9, 9, 0, 4]),
    'error: box outside the image: images/training/': update(bbox=[70, 9, 5, 5]),
    'warning: box crosses the image border: ': update(bbox=[0, 30, 90, 30]),
    'warning: area is not positive: ': update(area=0),
    'error: iscrowd is not 0 or 1: ': update(iscrowd=2),
    'error: no segmentation, but this config trains on masks': update(segmentation=[]),
    'error: segmentation is neither': update(segmentation='1 2 3'),
    'error: segmentation is not a list of polygons': update(segmentation=[1, 2, 3, 4, 5, 6]),
    'error: polygon of an odd number of coordinates: ': update(**polygon(*ON_BOARD, 7)),
    'error: polygon of fewer than 3 points: ': update(**polygon(1, 1, 9, 9)),
    'error: polygon with values that are not': update(**polygon(1, 1, 9, float('inf'), 9, 1)),
    'error: polygons outside the image: ': update(**polygon(70, 5, 80, 5, 80, 9)),
    'error: polygon ends far outside the image: ': update(**polygon(5, 40, 1e12, 40, 5, 45)),
    'warning: polygon crosses the image border: ': update(**polygon(5, 40, 1e5, 40, 5, 45)),
    'warning: mask covers no pixel: ': update(**polygon(5, 40, 5.1, 40, 5, 40.1)),
    'warning: crowd given as polygons': crowd(**polygon(0, 0, 64, 0, 64, 64)),
    'error: size of run lengths is not height, width': crowd(**run_lengths([64 * 60], (64, 60))),
    'error: run lengths do not decode to the size': crowd(**run_lengths([64, 60])),
    'error: run lengths do not decode to the size of the image': crowd(**run_lengths('zz$')),
    'note: area differs from that of the mask: ': update(area=9000),
    'warning: box and mask do not fit: ': update(bbox=[1, 38, 40, 20]),
    'note: box is not tight around the mask: ': update(bbox=[0, 0, 64, 64]),
}


@pytest.mark.parametrize('expected', DAMAGE)
def test_damaged_instances_are_found(expected, data):
    before = problems(instances(data), 'train')
    edit(data / TRAINING, DAMAGE[expected])
    new = [line for line in problems(instances(data), 'train') if line not in before]
    severity, what = expected.split(': ', 1)
    found = [line for line in new if line.startswith(f'{severity} [train] ')]
    assert has(found, *what.split(': ')), new
    if severity == 'error' and 'differ from those of the file' not in found[0]:
        # What needs no pixels stops a training before anything is built.
        with pytest.raises(UserError) as stopped:
            check_data(instances(data), ('train_dataloader',))
        assert what.split(': ')[-1].strip() in str(stopped.value)
    # One mistake is one error, but for those of images and categories, which others refer to.
    others = [line for line in new if line.startswith('error') and line not in found]
    assert not others or 'images' in what or 'categories' in what


@pytest.mark.parametrize(
    'values', [dict(bbox=[9, 9, 0, 4]), dict(area=0), dict(bbox=[70, 9, 5, 5])]
)
def test_mmdet_skips_the_objects_of_which_a_message_says_so(values, data):
    def objects():
        cfg = instances(data).train_dataloader.dataset
        with DATASETS.switch_scope_and_registry('mmdet') as registry:
            dataset = registry.build({**cfg, 'pipeline': []})
        return sum(len(dataset[i]['instances']) for i in range(len(dataset)))

    before = objects()
    edit(data / TRAINING, update(**values))
    assert objects() == before - 1


def test_classes_in_another_order_than_the_categories_are_an_error_in_training_too(data):
    edit(data / TRAINING, lambda content: content['categories'].reverse())
    (error,) = errors(instances(data), 'train')
    assert 'in another order' in error and 'star, box, disk' in error
    with pytest.raises(UserError, match='in another order'):
        check_data(instances(data), ('train_dataloader',))


def test_images_that_are_not_listed_and_classes_without_objects_are_noted(data):
    def change(content):
        gone = content['images'].pop()['id']
        content['annotations'] = [
            a for a in content['annotations'] if a['category_id'] != 2 and a['image_id'] != gone
        ]

    edit(data / TRAINING, change)
    found = problems(instances(data))
    assert has(found, 'note [train] image is not listed in the annotations', '000007.jpg')
    assert has(found, 'warning [train] class without objects: box')


def test_heads_for_another_number_of_classes_are_an_error(tiny_shapes):
    cfg = instances(tiny_shapes, **{'model.roi_head.mask_head.num_classes': 80})
    assert has(errors(cfg), 'model.roi_head.mask_head.num_classes is 80')
    cfg = maps(tiny_shapes, **{'model.auxiliary_head.num_classes': 150})
    assert has(errors(cfg), 'model.auxiliary_head.num_classes is 150')


def test_run_lengths_are_unpacked_as_by_pycocotools():
    rng = np.random.default_rng(0)
    for density in (0, 0.01, 0.3, 0.99, 1):
        mask = np.asfortranarray(rng.random((37, 70)) < density, np.uint8)
        runs = _unpack(mask_utils.encode(mask)['counts'].decode())
        values = np.repeat(np.arange(len(runs)) % 2, runs)
        assert (mask == values.reshape(70, 37).T).all()


@needs_samples
def test_damage_to_real_photos_is_found(tmp_path):
    data = Path(shutil.copytree(f'{SAMPLES}/coco_small', tmp_path / 'coco'))
    options = dict(data_root=str(data), ann_file='instances.json', data_prefix=dict(img='images'))
    cfg = configure('mask_rcnn_gcvit_xxtiny_coco', of_splits(['val'], **options))
    cfg.val_evaluator.ann_file = str(data / 'instances.json')
    os.chmod(data / 'instances.json', 0o644)
    photos = sorted((data / 'images').iterdir())
    os.chmod(photos[0], 0o644)
    cut(photos[0], 0.97)
    photo = json.loads((data / 'instances.json').read_text())['images'][3]
    edit(data / 'instances.json', entry('images', 3, width=photo['height'], height=photo['width']))
    found = errors(cfg, 'val')
    assert has(found, 'image cannot be read whole', photos[0].name)
    assert has(found, 'width and height differ', photo['file_name'])


# --- Label maps -------------------------------------------------------------------------------


@pytest.mark.parametrize('reduce', [False, True])
@pytest.mark.parametrize('classes', [None, ('building', 'wall')])
def test_values_of_maps_mean_what_mmseg_makes_of_them(reduce, classes, tmp_path):
    path = tmp_path / 'map.png'
    Image.fromarray(np.arange(256, dtype=np.uint8)[None]).save(path)
    with DATASETS.switch_scope_and_registry('mmseg') as registry:
        dataset = registry.build(
            dict(
                type='ADE20KDataset',
                metainfo=classes and dict(classes=classes),
                reduce_zero_label=reduce,
                lazy_init=True,
            )
        )
    results = dict(seg_map_path=str(path), reduce_zero_label=reduce, seg_fields=[])
    results['label_map'] = dataset.label_map
    with TRANSFORMS.switch_scope_and_registry('mmseg') as registry:
        loaded = registry.build(dict(type='LoadAnnotations'))(results)['gt_seg_map']
    count = len(dataset.metainfo['classes'])
    expected = np.where((loaded < count) | (loaded == 255), loaded.astype(int), -1)
    labels = labels_of_values(reduce, dataset.label_map, count)
    assert labels.tolist() == [*expected.tolist(), -1]


def replace_map(values):
    return lambda path: Image.fromarray(values).save(path)


MAP_DAMAGE = {
    'error: label map cannot be read whole': cut,
    'error: image without a label map': Path.unlink,
    'error: label map and image differ in size': replace_map(np.zeros((64, 60), np.uint8)),
    'error: label map has several channels': replace_map(np.zeros((64, 64, 3), np.uint8)),
    'error: label map values are not classes': replace_map(np.full((64, 64), 4, np.uint8)),
    'error: label map values are not classes: ': replace_map(np.full((64, 64), 300, np.uint16)),
    'warning: label map has only ignored pixels': replace_map(np.full((64, 64), 255, np.uint8)),
}


@pytest.mark.parametrize('expected', MAP_DAMAGE)
def test_damaged_label_maps_are_found(expected, data):
    MAP_DAMAGE[expected](data / 'annotations/training/000002.png')
    (found,) = (line for line in problems(maps(data)) if not line.startswith('note'))
    severity, what = expected.split(': ')[:2]
    assert found.startswith(f'{severity} [train] {what}')
    assert 'annotations/training/000002.png' in found


def test_maps_with_a_palette_are_sound(data):
    for path in (data / 'annotations/training').iterdir():
        image = Image.open(path)
        image.putpalette([7, 8, 9] * 256)
        image.save(path)
        assert Image.open(path).mode == 'P'
    assert not problems(maps(data))


def test_zeros_that_are_to_be_left_out_shift_the_classes(data):
    found = problems(maps(data, **of_splits(reduce_zero_label=True)), 'train')
    assert has(found, 'warning [train] class without pixels: star')


def test_maps_without_images_and_other_suffixes_are_found(data):
    (data / 'images/training/000002.jpg').unlink()
    assert has(problems(maps(data)), 'warning', 'label map without an image', '000002.png')
    found = errors(maps(data, **of_splits(['train'], img_suffix='.jpeg')), 'train')
    assert has(found, 'no images *.jpeg', '7 *.jpg')


# --- Labels -----------------------------------------------------------------------------------


def test_class_folders_that_are_not_the_classes_are_an_error(folders):
    shutil.rmtree(folders / 'val/box')
    found = errors(labels(folders))
    assert has(found, '[val, test] 2 class folders, but 3 classes', 'without folder: box')
    (folders / 'val/cube').mkdir()
    found = problems(labels(folders))
    assert has(found, 'error [val, test] class folders differ from those of train: box, cube')


def test_classes_in_another_order_than_the_folders_are_an_error(folders):
    cfg = labels(folders, **of_splits(metainfo=dict(classes=['star', 'disk', 'box'])))
    assert has(errors(cfg), '[train] classes of the config', 'alphabetical order of the folders')


def test_empty_classes_other_files_and_damage_are_found_in_folders(folders):
    for path in (folders / 'train/box').iterdir():
        path.unlink()
    cut(folders / 'val/disk/1.png')
    (folders / 'val/disk/notes.txt').write_text('')
    found = problems(labels(folders))
    assert has(found, 'warning [train] class without images: box')
    assert has(found, 'error [val, test] image cannot be read whole', 'val/disk/1.png')
    assert has(found, 'note [val, test] file without the suffix of an image', 'disk/notes.txt')


def test_mistakes_in_lists_of_labels_are_found_with_their_lines(folders):
    lines = ['box/0.png 0', 'disk/0.png', 'disk/1.png two', 'star/0.png 3', 'box/0.png 1',
             'box/gone.png 0']  # fmt: skip
    (folders / 'train.txt').write_text('\n'.join(lines))
    found = errors(labels(folders, **{'train_dataloader.dataset.ann_file': 'train.txt'}), 'train')
    assert has(found, 'line is not a path, a space and a label', 'train.txt, line 2')
    assert has(found, 'line is not a path, a space and a label', 'line 3', 'two')
    assert has(found, 'label is not from 0 to 2', 'line 4')
    assert has(found, 'listed with different labels: train/box/0.png: 0 and 1')
    assert has(found, 'image cannot be read whole', 'line 6', 'box/gone.png', 'No such file')
    assert len(found) == 5


@pytest.mark.parametrize('key', ['model.head', 'data_preprocessor'])
def test_classifiers_for_another_number_of_classes_are_an_error(key, folders):
    cfg = labels(folders, **{f'{key}.num_classes': 1000})
    assert has(errors(cfg), f'{key}.num_classes is 1000, but train_dataloader.dataset has 3')


def test_a_missing_folder_of_a_split_is_named_before_training(folders):
    shutil.rmtree(folders / 'train')
    with pytest.raises(UserError, match=f'image folder {folders}/train .*does not exist'):
        check_data(labels(folders), ('train_dataloader',))


def test_the_config_in_the_documentation_fits_its_data(folders, tmp_path):
    text = (ROOT / 'docs/datasets.md').read_text()
    config = re.search('```python\n(.*?)```', text, re.DOTALL).group(1)
    for old, new in (
        ("'./", f"'{ROOT}/configs/"),
        ('data/photos', str(folders)),
        ("('cat', 'dog', 'horse')", str(tuple(sorted(SHAPES)))),
    ):
        assert old in config
        config = config.replace(old, new)
    path = tmp_path / 'gcvit_xxtiny_photos.py'
    path.write_text(config)
    assert not problems(Config.fromfile(path))


# --- Output -----------------------------------------------------------------------------------


def test_long_places_stay_on_one_line_in_files(data, capsys, monkeypatch):
    monkeypatch.delenv('COLUMNS', raising=False)
    name = 'x' * 200 + '.png'
    (data / 'annotations/training' / name).write_bytes(b'')
    print_reports(check_datasets(maps(data)))
    out = capsys.readouterr().out
    assert f'annotations/training/{name}' in out
    assert out.endswith('0 errors, 1 warning, 0 notes\n')
    assert all(line == line.rstrip() for line in out.splitlines())


def test_everything_is_in_the_json_file(data, tmp_path):
    for path in (data / 'annotations/training').iterdir():
        path.unlink()
    reports = check_datasets(maps(data))
    write_reports(reports, str(tmp_path / 'new/found.json'))
    train, val = json.loads((tmp_path / 'new/found.json').read_text())
    assert train['splits'] == ['train'] and val['splits'] == ['val', 'test']
    assert [len(p['where']) for p in train['problems']] == [8]
    assert val['sizes']['image width'] == {'min': 64, 'median': 64, 'max': 64}
    assert list(val['classes']) == ['background', *SHAPES]
    with pytest.raises(UserError, match='cannot be written'):
        write_reports(reports, str(data / TRAINING / 'found.json'))


def test_the_command_names_the_file_and_exits_with_status_1(data, tmp_path):
    cut(data / 'images/training/000003.jpg')
    found = tmp_path / 'found.json'
    run = call('check_dataset.py', NANO, *on(data), '--splits', 'train', 'val', '--out', found)
    assert run.returncode == 1, run.stderr
    assert 'Traceback' not in run.stdout + run.stderr
    (line,) = (line for line in run.stdout.splitlines() if line.startswith('error'))
    assert 'images/training/000003.jpg: image file is truncated' in line
    assert run.stdout.startswith('train: CocoDataset in ')
    assert json.loads(found.read_text())[0]['problems'][0]['severity'] == 'error'
