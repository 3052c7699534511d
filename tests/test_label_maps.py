"""Label maps and class folders are loaded right or refused with their name, never wrong."""

import copy
import os
import shutil
import tempfile
import time
import warnings
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, fail, succeed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import ExifTags, Image

import gcvit_mm.register  # noqa: F401
from gcvit_mm.config import datasets_of, default_scope, read_config
from gcvit_mm.datasets.check.heads import check_heads, class_names
from gcvit_mm.datasets.check.label_maps import check_label_maps
from gcvit_mm.datasets.check.labels import check_labels
from gcvit_mm.datasets.check.report import Report
from gcvit_mm.datasets.check.settings import check_settings
from gcvit_mm.datasets.collate import collate_equal_sizes, prepare_collating
from gcvit_mm.datasets.load_label_map import LoadWholeMap, prepare_maps
from gcvit_mm.engine.setup import LOADERS, prepare
from gcvit_mm.errors import UserError
from gcvit_mm.run_config import check_paths

CLASSES = ('background', 'disk', 'box')
ANIMALS = ('cat', 'dog', 'horse')
SIZE = 12, 10  # height, width
NANO_MAPS = 'upernet_gcvit_nano_shapes'


@cache
def stored(name):
    return read_config(ROOT / 'configs' / f'{name}.py')


def config(name, **options):
    cfg = copy.deepcopy(stored(name))
    cfg.merge_from_dict(options)
    return cfg


def everywhere(**options):
    return {
        f'{split}_dataloader.dataset.{key}': value
        for split in ('train', 'val', 'test')
        for key, value in options.items()
    }


def segmenter(root, **options):
    """The nano segmenter's config for three classes of PNG images."""
    cfg = config(NANO_MAPS, **everywhere(data_root=str(root), img_suffix='.png'))
    cfg.launcher = 'none'
    for name in LOADERS:
        cfg[name].dataset.metainfo = dict(classes=CLASSES)
        cfg[name].update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.pipeline.pop(2)  # the flip
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(num_classes=3)
        head.loss_decode.class_weight = None
    cfg.merge_from_dict(options)
    return cfg


def classifier(root, **options):
    cfg = config('gcvit_xxtiny_imagenet', **everywhere(data_root=str(root)))
    for name in LOADERS:
        cfg[name].dataset.metainfo = dict(classes=ANIMALS)
        cfg[name].dataset.pipeline = [dict(type='LoadWholeImage'), dict(type='PackInputs')]
        cfg[name].update(batch_size=2)
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = 3
    cfg.merge_from_dict(options)
    return cfg


def save(path, values, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **how)


def save_maps(root, images=3):
    """Images and label maps with all classes and ignored pixels, laid out like the shapes."""
    rng = np.random.default_rng(0)
    for folder in ('training', 'validation'):
        for i in range(images):
            save(root / f'images/{folder}/{i}.png', rng.integers(0, 256, (*SIZE, 3), np.uint8))
            labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), SIZE)
            save(root / f'annotations/{folder}/{i}.png', labels)
    return root


def save_folders(root):
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ANIMALS:
            for i in range(2):
                save(root / split / name / f'{i}.png', rng.integers(0, 256, (9, 8, 3), np.uint8))
    return root


@pytest.fixture
def maps(tmp_path):
    return save_maps(tmp_path / 'maps')


@pytest.fixture
def folders(tmp_path):
    return save_folders(tmp_path / 'animals')


def build(cfg, data):
    with default_scope(cfg):
        try:
            return DATASETS.build({**data, 'pipeline': [], 'lazy_init': True})
        except Exception as error:
            raise UserError(f'{data.type} cannot be built: {error}') from error


def new_report(name):
    required = [f for f in fields(Report) if f.default_factory is MISSING]
    return Report(*[name] * len(required))


def look(cfg, loader='train_dataloader', *, pixels):
    """The errors of the checks of a loader, as lines."""
    report = new_report(loader)
    for data in datasets_of(cfg[loader]):
        try:
            check_paths(loader, data)
            check_heads(cfg, loader, class_names(cfg, loader, data))
            dataset = build(cfg, data)
            check_settings(cfg, loader, dataset, report)
            check = check_label_maps if cfg.default_scope == 'mmseg' else check_labels
            check(dataset, report, pixels=pixels)
            check_heads(cfg, loader, tuple(report.classes))
        except UserError as error:
            report.add_mismatch(error)
    places = [(what, place) for (kind, what), all_ in report.problems.items() for place in all_
              if kind == 'error']  # fmt: skip
    return [f'{what}: {place}' for what, place in places]


def load(cfg, loader='train_dataloader'):
    """All samples of a loader, loaded as in a training."""
    prepare_maps(cfg, loader)
    with default_scope(cfg), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dataset = DATASETS.build(cfg[loader].dataset)
    return [dataset[i] for i in range(len(dataset))]


def has(lines, *parts):
    return any(all(str(part) in line for part in parts) for line in lines)


# --- Loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['L', 'P', 'I;16', 'I'])
@pytest.mark.parametrize('reduce', [False, True])
@pytest.mark.parametrize('classes', [None, ('building', 'wall')])
def test_right_maps_are_loaded_as_by_mmseg(mode, reduce, classes, tmp_path):
    values = np.r_[0 : 150 + reduce, 255].astype(np.uint16 if ';' in mode else np.uint8)[None]
    image = Image.fromarray(values)
    if mode == 'P':
        image.putpalette([9, 8, 7] * 256)
    save(tmp_path / 'map.png', image.convert('I') if mode == 'I' else image)
    meta = classes and dict(classes=classes)
    kind = dict(type='ADE20KDataset', metainfo=meta, reduce_zero_label=reduce, lazy_init=True)
    with DATASETS.switch_scope_and_registry('mmseg') as registry:
        dataset = registry.build(kind)
    info = dict(seg_map_path=str(tmp_path / 'map.png'), label_map=dataset.label_map,
                reduce_zero_label=reduce)  # fmt: skip
    ours = LoadWholeMap(num_classes=len(dataset.metainfo['classes']))({**info, 'seg_fields': []})
    with TRANSFORMS.switch_scope_and_registry('mmseg') as registry:
        theirs = registry.build(dict(type='LoadAnnotations'))({**info, 'seg_fields': []})
    # mmseg loses a dimension of maps with one row.
    assert np.array_equal(ours['gt_seg_map'], theirs['gt_seg_map'][None])
    assert ours['gt_seg_map'].dtype == theirs['gt_seg_map'].dtype
    assert ours['seg_fields'] == theirs['seg_fields'] == ['gt_seg_map']


def painted(value, kind=np.uint8):
    return lambda path: save(path, np.full(SIZE, value, kind))


def huge(path):
    save(path, np.full(SIZE, 70000, np.int32), format='TIFF')


def in_colour(path):
    save(path, np.zeros((*SIZE, 3), np.uint8))


def with_alpha(path):
    save(path, Image.new('LA', SIZE[::-1]))


def in_pages(path):
    frame = Image.fromarray(np.zeros(SIZE, np.uint8))
    frame.save(path, 'TIFF', save_all=True, append_images=[frame])


def as_jpeg(path):
    save(path, np.zeros(SIZE, np.uint8), format='JPEG')


def as_floats(path):
    save(path, np.full(SIZE, 1, np.float32), format='TIFF')


def negative(path):
    save(path, np.full(SIZE, -1, np.int32), format='TIFF')


def turned(path):
    save(path, np.zeros(SIZE[::-1], np.uint8))


def to_be_turned(path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(path, exif=exif)


def cut(path):
    path.write_bytes(path.read_bytes()[:50])


WRONG = [
    (painted(7), '7', '0 to 2, 255'),
    (painted(258, np.uint16), '258'),
    (painted(65535, np.uint16), '65535'),
    (huge, '70000'),
    (in_colour, 'several channels', 'RGB'),
    (with_alpha, 'several channels', 'LA'),
    (in_pages, '2 pages'),
    (as_jpeg, 'JPEG', 'PNG'),
    (as_floats, 'not class numbers', 'float32'),
    (negative, 'not class numbers', '-1'),
    (turned, 'differ in size', '12 x 10', '10 x 12'),
    (to_be_turned, 'save it upright', 'orientation 6'),
    (cut, 'cannot be read'),
    (Path.unlink, ''),
]


@pytest.mark.parametrize(('spoil', 'shown'), [(spoil, shown) for spoil, *shown in WRONG])
@pytest.mark.parametrize('loader', ['train_dataloader', 'test_dataloader'])
def test_wrong_maps_are_named_by_loading_and_by_the_check(spoil, shown, loader, maps):
    path = maps / (
        'annotations/training/1.png' if 'train' in loader else 'annotations/validation/1.png'
    )
    spoil(path)
    cfg = segmenter(maps)
    with pytest.raises(UserError) as raised:
        load(cfg, loader)
    assert has([str(raised.value)], path, *shown)
    assert has(look(cfg, loader, pixels=True), path.relative_to(maps), *shown)


def test_values_that_mmseg_makes_of_dropped_classes_are_no_error(maps):
    cfg = segmenter(maps, **everywhere(reduce_zero_label=True))
    for sample in load(cfg):
        labels = sample['data_samples'].gt_sem_seg.data
        assert set(labels.unique().tolist()) == {0, 1, 255}
    assert not look(cfg, pixels=True)


def test_another_ignore_index_is_taken_from_the_data_set_and_is_used_for_padding(maps):
    for path in maps.rglob('annotations/*/*.png'):
        values = np.asarray(Image.open(path))
        save(path, np.where(values == 255, 250, values).astype(np.uint8))
    assert has(look(segmenter(maps), pixels=True), '250')
    cfg = segmenter(maps, **everywhere(ignore_index=250))
    assert has(look(cfg, pixels=False), 'decode_head.ignore_index=255', 'dataset.ignore_index=250')
    cfg.model.decode_head.ignore_index = cfg.model.auxiliary_head.ignore_index = 250
    assert has(look(cfg, 'val_dataloader', pixels=False), 'val_evaluator.ignore_index=255')
    cfg.val_evaluator.ignore_index = 250
    assert not look(cfg, pixels=True) + look(cfg, 'val_dataloader', pixels=True)
    turn = dict(type='RandomRotate', prob=1.0, degree=(45, 45))
    cfg.train_dataloader.dataset.pipeline.insert(2, turn)
    values = {
        v for sample in load(cfg) for v in sample['data_samples'].gt_sem_seg.data.unique().tolist()
    }
    assert values == {0, 1, 2, 250}
    assert cfg.model.data_preprocessor.seg_pad_val == 250
    cfg.train_dataloader.dataset.reduce_zero_label = True
    assert has(look(cfg, pixels=False), 'ignore_index must be 255')


def test_masks_in_black_and_white_are_refused_before_a_training(maps):
    for path in maps.rglob('annotations/*/*.png'):
        save(path, np.asarray(Image.open(path)) // 2 // 64 * 255)
    cfg = segmenter(maps)
    for loader in ('train_dataloader', 'val_dataloader'):
        for pixels in (False, True):
            assert has(look(cfg, loader, pixels=pixels), 'only the values 0 and 255', 'write 1')
    values = np.zeros(SIZE, np.uint8)
    values[0, 0] = 1
    save(maps / 'annotations/training/2.png', values)
    assert not look(cfg, pixels=False)


def test_a_training_on_background_alone_is_refused(maps):
    for path in maps.rglob('annotations/*/*.png'):
        painted(0)(path)
    assert has(look(segmenter(maps), pixels=False), 'nothing to learn', 'annotations/training')
    assert not look(segmenter(maps), 'test_dataloader', pixels=False)


def test_images_alone_are_loaded_without_maps():
    results = dict(img_path='a.png')
    assert LoadWholeMap()(dict(results)) == results


def test_maps_that_cannot_be_read_are_skipped_like_images(maps, tmp_path):
    cfg = segmenter(maps, work_dir=str(tmp_path / 'work'))
    cut(maps / 'annotations/training/0.png')
    (maps / 'annotations/validation/1.png').unlink()
    prepare(cfg, skip_bad_images=2)
    with default_scope(cfg):
        train, val = (DATASETS.build(cfg[name].dataset) for name in LOADERS[:2])
    assert train[0]['data_samples'].seg_map_path.endswith(('1.png', '2.png'))
    assert (val[1]['data_samples'].gt_sem_seg.data == 255).all()
    listed = (tmp_path / 'work/bad_images.txt').read_text().splitlines()
    assert {Path(path).parts[-2:] for path in listed} == {
        ('training', '0.png'),
        ('validation', '1.png'),
    }
    in_colour(maps / 'annotations/training/1.png')
    with pytest.raises(UserError, match='several channels'):
        train[1]


@pytest.mark.slow
def test_a_training_skips_damaged_maps_and_stops_at_wrong_ones(tiny_shapes, tmp_path):
    data = Path(shutil.copytree(tiny_shapes, tmp_path / 'data'))
    cut(data / 'annotations/training/000003.png')
    options = {
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'train_dataloader.batch_size': 4,
    }
    for name in LOADERS:  # whose persistent_workers is True
        options |= {f'{name}.dataset.data_root': data, f'{name}.num_workers': 0}
    settings = (f'{k}={v}' for k, v in options.items())
    args = [f'configs/{NANO_MAPS}.py', '--skip-bad-images', '--cfg-options', *settings]
    args += ['--work-dir', tmp_path / 'work']
    assert '1 bad image(s) skipped' in succeed('train.py', *args)
    for path in (data / 'annotations/training').iterdir():
        save(path, np.zeros((64, 64, 3), np.uint8))
    output = fail('train.py', *args[:-1], tmp_path / 'other')
    assert 'label map' in output and 'several channels' in output and '.png' in output


# --- Files ------------------------------------------------------------------------------------


def test_names_alone_find_missing_files_and_wrong_suffixes(maps):
    (maps / 'annotations/training/1.png').unlink()
    assert has(look(segmenter(maps), pixels=False), 'without a label map', 'training/1.png')
    cfg = segmenter(maps, **{'train_dataloader.dataset.img_suffix': '.jpg'})
    assert has(look(cfg, pixels=False), 'no images *.jpg', '3 *.png', 'img_suffix')
    (maps / 'list.txt').write_text('0\n1.png\n\n')
    cfg = segmenter(maps, **{'train_dataloader.dataset.ann_file': 'list.txt'})
    assert has(look(cfg, pixels=False), 'images/training/1.png.png', 'No such file')
    (maps / 'list.txt').write_bytes('0\nä'.encode('utf-16'))
    assert has(look(cfg, pixels=False), 'list.txt', 'cannot be loaded')


def test_names_of_many_files_are_checked_in_seconds(maps):
    for i in range(3, 5000):
        for kind in ('images', 'annotations'):
            os.link(maps / kind / 'training/0.png', maps / kind / f'training/{i}.png')
    start = time.perf_counter()
    assert not look(segmenter(maps), pixels=False)
    assert time.perf_counter() - start < 5


def test_images_with_another_suffix_are_a_warning(maps):
    save(maps / 'images/training/9.JPG', np.zeros((*SIZE, 3), np.uint8))
    report = new_report('train')
    with default_scope(cfg := segmenter(maps)):
        dataset = DATASETS.build({**cfg.train_dataloader.dataset, 'lazy_init': True})
    check_label_maps(dataset, report)
    (((severity, what), places),) = report.problems.items()
    assert severity == 'warning' and '.png' in what and places == ['images/training/9.JPG']


# --- Settings ---------------------------------------------------------------------------------

SETTINGS = [
    ({'train_dataloader.batch_size': 0}, 'batch_size=0', 'from 1'),
    ({'train_dataloader.batch_size': -2}, 'batch_size=-2'),
    ({'train_dataloader.batch_size': 'two'}, "batch_size='two'"),
    ({'train_dataloader.num_workers': -1}, 'num_workers=-1', 'from 0'),
    ({'train_dataloader.num_workers': 0.5}, 'num_workers=0.5'),
    ({'train_dataloader.batchsize': 4}, 'train_dataloader', 'batchsize'),
    ({'train_dataloader.batch_size': 1}, 'batch norm of model.decode_head', 'batch_size=1'),
    (
        {'train_dataloader.sampler.type': 'DefaultSampler', 'train_dataloader.drop_last': True},
        'no batch is left', 'batch_size=8 with 3 images',
    ),
    (
        {'train_dataloader.sampler.type': 'DefaultSampler', 'train_dataloader.batch_size': 2,
         'train_cfg.type': 'IterBasedTrainLoop'},
        'batch norm of model.decode_head', 'batch_size=2 with 3 images',
    ),
    ({'train_dataloader.dataset.data_prefix': dict(_delete_=True, img_path='images/training')},
     'no label maps', 'seg_map_path'),
    ({'model.decode_head.loss_decode.class_weight': [1.0] * 4}, 'decode_head', '4 weights', '3'),
    ({'model.decode_head.loss_decode.class_weight': [1.0] * 3,
      'model.decode_head.loss_decode.use_sigmoid': True}, 'class_weight', 'use_sigmoid'),
    ({'model.decode_head.out_channels': 1}, 'out_channels=1 for 3 classes'),
    ({'model.decode_head.out_channels': 4}, 'out_channels=4 for 3 classes'),
    ({'train_dataloader.dataset.metainfo': dict(classes='disk')}, "text 'disk'", "('disk',)"),
    ({'train_dataloader.dataset.metainfo': dict(classes=(0, 1, 2))}, 'has 0', "write '0'"),
    ({'train_dataloader.dataset.metainfo': dict(classes=('a', 'b', 'a'))}, "'a' twice"),
    ({'train_dataloader.dataset.metainfo': dict(palette=[[1, 2, 3]] * 4)}, '4 colours for 3'),
    ({'train_dataloader.dataset.metainfo': dict(palette=[[1, 2, 3]])}, '1 colours for 3'),
    ({'train_dataloader.dataset.metainfo': 'classes'}, "metainfo is 'classes'"),
]  # fmt: skip


@pytest.mark.parametrize(('options', 'shown'), [(options, shown) for options, *shown in SETTINGS])
def test_settings_that_do_not_fit_are_named_without_reading_images(options, shown, maps):
    assert not look(segmenter(maps), pixels=False)
    assert has(look(segmenter(maps, **options), pixels=False), *shown)


@pytest.mark.parametrize('kind', ['LoadAnnotations', 'LoadWholeMap'])
def test_zero_is_ignored_by_data_set_and_pipeline_or_by_neither(kind, maps):
    step = dict(type=kind, reduce_zero_label=True)
    for split in ('train', 'test'):
        cfg = segmenter(maps)
        cfg[f'{split}_dataloader'].dataset.pipeline[1] = step
        found = look(cfg, f'{split}_dataloader', pixels=False)
        assert has(found, f'reduce_zero_label=True in {kind} alone', f'{split}_dataloader.dataset')
    cfg.test_dataloader.dataset.reduce_zero_label = True
    assert not look(cfg, 'test_dataloader', pixels=False)
    if kind == 'LoadWholeMap':
        cfg.test_dataloader.dataset.reduce_zero_label = False
        with pytest.raises(UserError, match='reduce_zero_label'):
            load(cfg, 'test_dataloader')


def test_one_output_channel_is_for_two_classes_and_a_sigmoid(maps):
    two = everywhere(metainfo=dict(_delete_=True, classes=CLASSES[:2]))
    cfg = segmenter(maps, **two)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(num_classes=2, out_channels=1)
    assert has(look(cfg, pixels=False), 'model.decode_head.loss_decode', 'use_sigmoid=True')
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.loss_decode = [dict(type='CrossEntropyLoss', use_sigmoid=True)]
    assert not look(cfg, pixels=False)
    cfg.model.decode_head.loss_decode.append(dict(type='DiceLoss', use_sigmoid=True))
    assert has(look(cfg, pixels=False), 'DiceLoss')


def test_images_without_maps_are_for_predictions_only(maps):
    prefix = dict(_delete_=True, img_path='images/validation')
    cfg = segmenter(maps, **{'test_dataloader.dataset.data_prefix': prefix})
    assert has(look(cfg, 'test_dataloader', pixels=False), 'seg_map_path', 'format_only=True')
    cfg.test_evaluator.format_only = True
    assert has(look(cfg, 'test_dataloader', pixels=False), 'test_evaluator', '--out')
    cfg.test_evaluator.output_dir = 'out'
    assert not look(cfg, 'test_dataloader', pixels=True)
    assert len(load(cfg, 'test_dataloader')) == 3


def test_several_validation_sets_have_the_classes_of_one(maps):
    cfg = segmenter(maps)
    first = cfg.val_dataloader.dataset
    second = ConfigDict({**first, 'metainfo': dict(classes=CLASSES[::-1])})
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[first, second])
    assert has(look(cfg, 'val_dataloader', pixels=False), 'different classes', 'val_dataloader')
    second.metainfo.classes = CLASSES
    assert not look(cfg, 'val_dataloader', pixels=False)


def test_class_weights_of_instance_heads_have_one_for_background(folders):
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0, 1.0, 1.0, 0.1])
    cfg = classifier(folders)
    cfg.model.head.loss = loss
    assert has(look(cfg, pixels=False), '4 weights', 'model.head.loss.class_weight')
    del cfg.model.head.loss
    cfg.model.head.loss_cls = loss
    assert not look(cfg, pixels=False)


def test_settings_of_workers_are_dropped_without_workers(maps, tmp_path):
    options = {
        f'{name}.{key}': value
        for name in LOADERS
        for key, value in dict(
            num_workers=0, persistent_workers=True, timeout=9, prefetch_factor=2
        ).items()
    }
    cfg = segmenter(maps, work_dir=str(tmp_path), **options)
    assert not look(cfg, pixels=False)
    prepare(cfg)
    for name in LOADERS:
        assert {'persistent_workers', 'timeout', 'prefetch_factor'}.isdisjoint(cfg[name])


def test_images_of_two_sizes_in_a_batch_are_named(maps, folders):
    save(maps / 'images/validation/1.png', np.zeros((20, 20, 3), np.uint8))
    save(maps / 'annotations/validation/1.png', np.zeros((20, 20), np.uint8))
    save(folders / 'train/dog/0.png', np.zeros((20, 20, 3), np.uint8))
    for cfg, loader in (
        (segmenter(maps), 'test_dataloader'),
        (classifier(folders), 'train_dataloader'),
    ):
        if loader == 'train_dataloader':
            cfg[loader].collate_fn = dict(type='default_collate')
        for _ in range(2):  # again for the config of a work directory
            prepare_collating(cfg, loader)
        how = dict(cfg[loader].collate_fn)
        assert how.pop('type') == 'collate_equal_sizes'
        samples = load(cfg, loader)
        with pytest.raises(UserError, match=r'[01]\.png .* 20 x 20.*batch_size=1'):
            collate_equal_sizes(samples, **how)
        assert len(collate_equal_sizes(samples[:1], **how)['inputs']) == 1
        views = [{key: [value] for key, value in sample.items()} for sample in samples]
        with pytest.raises(UserError, match='differ in size'):
            collate_equal_sizes(views, **how)
    prepare_collating(cfg := segmenter(maps), 'train_dataloader')
    how = cfg.train_dataloader.collate_fn
    assert how.pop('padded_to') == (128, 128)  # mmseg pads to this
    assert collate_equal_sizes(load(cfg, 'test_dataloader'), how.how, (128, 128))


# --- Class folders and lists ------------------------------------------------------------------


def moved(root, **names):
    for old, new in names.items():
        for split in ('train', 'val'):
            (root / split / old).rename(root / split / new)


def test_folders_in_another_order_than_the_classes_are_an_error(folders):
    def errors(*classes):
        cfg = classifier(folders, **everywhere(metainfo=dict(classes=classes)))
        cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = len(classes)
        return look(cfg, pixels=False)

    assert not errors(*ANIMALS)
    assert not errors('Cat', 'Dog', 'Horse')
    assert not errors('Katze', 'Hund', 'Pferd')  # other names cannot be compared
    assert has(errors(*ANIMALS[::-1]), 'alphabetical order', 'cat, dog, horse')
    assert has(errors('Dog', 'Cat', 'Horse'), 'alphabetical order')
    assert has(errors('cat', 'dog', 'cow'), 'not among the classes', 'cow', 'horse')
    assert has(errors('cat', 'dog'), '3 class folders, but 2 classes', 'horse')
    moved(folders, cat='1', dog='10', horse='2')
    assert has(errors(*ANIMALS), 'leading zeros', '1, 10, 2')
    assert not errors('1', '10', '2')


def test_hidden_missing_and_unused_folders_are_an_error(folders):
    (folders / 'train/.cache').mkdir()
    found = look(classifier(folders), pixels=False)
    assert has(found, 'hidden folder', 'train/.cache')
    shutil.rmtree(folders / 'val/dog')
    assert has(look(classifier(folders), 'val_dataloader', pixels=False), 'without folder: dog')
    for path in (folders / 'train/cat').iterdir():
        path.rename(path.with_suffix('.webp'))
    assert has(look(classifier(folders), pixels=False), 'folder without', 'train/cat', '2 *.webp')


def test_copies_in_hidden_folders_are_an_error(folders, maps):
    copies = '.ipynb_checkpoints'
    shutil.copytree(folders / 'train/cat', folders / 'train/cat' / copies)
    for kind in ('images', 'annotations'):
        shutil.copytree(maps / kind / 'training', maps / kind / 'training' / copies)
    for cfg in (classifier(folders), segmenter(maps)):
        for pixels in (False, True):
            assert has(look(cfg, pixels=pixels), 'hidden folder', f'{copies}/0.png')


def test_hidden_files_are_not_images(folders):
    (folders / 'train/cat/._0.png').write_bytes(b'')
    assert not look(classifier(folders), pixels=True)
    assert len(load(classifier(folders))) == 6


LINES = [
    ('cat/1.png,0', 'line is not'),
    ('cat/1.png\t0', 'line is not'),
    ('cat/1.png cat', 'line is not'),
    ('cat/1.png -1', 'line is not'),
    ('cat/1.png 1.0', 'line is not'),
    ('', 'line is not'),
    ('cat/1.png 3', 'not from 0 to 2'),
    ('cat/7.png 0', 'No such file'),
    ('cat/1.png  0', 'No such file'),
    ('cat/0.png 1', 'different labels'),
]


@pytest.mark.parametrize(('line', 'what'), LINES)
def test_wrong_lines_of_lists_are_named_by_their_numbers(line, what, folders):
    (folders / 'train.txt').write_text(f'cat/0.png 0\n{line}\ndog/0.png 1\nhorse/0.png 2\n')
    cfg = classifier(folders, **{'train_dataloader.dataset.ann_file': 'train.txt'})
    (found,) = look(cfg, pixels=False)
    assert what in found and ('line 2' in found or 'different' in what)
    assert look(cfg, pixels=True) == [found]


def test_right_lists_are_loaded(folders):
    moved(folders, cat='big cat')
    (folders / 'train.txt').write_text('big cat/0.png 0\ndog/0.png 1\r\nhorse/0.png 2')
    cfg = classifier(folders, **{'train_dataloader.dataset.ann_file': 'train.txt'})
    assert not look(cfg, pixels=True)
    assert [int(sample['data_samples'].gt_label) for sample in load(cfg)] == [0, 1, 2]
    (folders / 'train.txt').write_bytes(b'c\xe4t/0.png 0\n')
    assert has(look(cfg, pixels=False), 'train.txt', 'UTF-8')


def test_repeated_names_of_a_known_data_set_are_counted_apart(folders):
    cfg = config('gcvit_xxtiny_imagenet', **everywhere(data_root=str(folders)))  # two cranes
    found = look(cfg, pixels=False)
    assert has(found, '3 class folders, but 1000 classes')
    assert not has(found, 'num_classes') and not has(found, 'twice')


def test_images_without_labels_are_neither_learned_nor_evaluated(folders):
    cfg = classifier(folders, **{'train_dataloader.dataset.with_label': False})
    assert has(look(cfg, pixels=False), 'with_label=True', 'train_dataloader')
    cfg = classifier(folders, **{'test_dataloader.dataset.with_label': False})
    assert has(look(cfg, 'test_dataloader', pixels=False), 'with_label=True', 'test_dataloader')
    cfg.test_evaluator = []
    assert not look(cfg, 'test_dataloader', pixels=True)


# --- Mutations --------------------------------------------------------------------------------

VALUES = st.sampled_from([0, 1, 2, 3, 4, 127, 254, 255, 256, 257, 258, 511, 65535, -1, 70000, 0.5])
ANYTHING = st.sampled_from([None, True, 0, 1, -1, 2.5, 10**20, '', 'x', '.png', [], ['a', 'b', 'c'],
                            ('a', 'b'), {}, [0, 1, 2], 'background', 250, 255])  # fmt: skip


PATHS = st.sampled_from(['', 'x', '.', 'images', 'train', 'train/cat'])


def _as_array(value):
    kind = np.float32 if value % 1 else np.int32 if not 0 <= value < 2**16 else np.uint16
    return np.full(SIZE, value, kind if value > 255 or value < 0 or value % 1 else np.uint8)


def _repaint(draw, path):
    values = _as_array(draw(VALUES))
    if draw(st.booleans()):  # one pixel alone
        single = np.asarray(Image.open(path)).astype(values.dtype)
        single[3, 4] = values[3, 4]
        values = single
    integral = values.dtype in (np.uint8, np.uint16)
    save(path, values, format='PNG' if integral else 'TIFF')


def _convert(draw, path):
    mode = draw(st.sampled_from(['1', 'L', 'P', 'I', 'F', 'RGB', 'RGBA', 'LA', 'CMYK', 'I;16']))
    image = Image.open(path)
    save(path, image.convert(mode), format=draw(st.sampled_from(['TIFF', 'JPEG']))
         if mode in ('L', 'CMYK') else 'TIFF')  # fmt: skip


def _resize(draw, path):
    side = st.integers(1, 20)
    save(path, Image.open(path).resize((draw(side), draw(side)), Image.Resampling.NEAREST))


def _replace(draw, path):
    content = path.read_bytes()
    how = draw(st.sampled_from(['remove', 'empty', 'cut', 'text', 'folder', 'rename', 'flip']))
    if how == 'rename':
        path.rename(path.with_name(draw(st.sampled_from(['0.PNG', 'x.png', '.1.png', '1.jpg']))))
        return
    path.unlink()
    if how == 'folder':
        path.mkdir()
    elif how != 'remove':
        at = draw(st.integers(1, len(content) - 1))
        flipped = content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]
        path.write_bytes(dict(empty=b'', cut=content[:at], text=b'0 1 2\n', flip=flipped)[how])


def _mutate_maps(draw, root, cfg):
    """Change one thing of right label maps, of their images, or of their data set's config."""
    what = draw(st.sampled_from(['map', 'image', 'list', 'config', 'config']))
    if what in ('map', 'image'):
        folder = root / ('annotations' if what == 'map' else 'images') / 'training'
        ways = [_repaint, _convert, _resize, _replace] if what == 'map' else [_resize, _replace]
        draw(st.sampled_from(ways))(draw, folder / f'{draw(st.integers(0, 1))}.png')
    elif what == 'list':
        lines = draw(
            st.lists(st.sampled_from(['0', '1', '1.png', '', ' 0', '0 ', '../0', 'ä']), max_size=3)
        )
        (root / 'list.txt').write_text('\n'.join(lines))
        cfg.train_dataloader.dataset.ann_file = 'list.txt'
    else:
        place, key = draw(st.sampled_from([
            ('train_dataloader.dataset', 'img_suffix'),
            ('train_dataloader.dataset', 'seg_map_suffix'),
            ('train_dataloader.dataset', 'reduce_zero_label'),
            ('train_dataloader.dataset', 'ignore_index'),
            ('train_dataloader.dataset', 'metainfo'),
            ('train_dataloader.dataset', 'ann_file'),
            ('train_dataloader.dataset', 'data_prefix'),
            ('train_dataloader.dataset.metainfo', 'classes'),
            ('train_dataloader.dataset.metainfo', 'palette'),
            ('train_dataloader', 'batch_size'),
            ('train_dataloader', 'num_workers'),
            ('train_dataloader', 'drop_last'),
            ('model.decode_head', 'out_channels'),
            ('model.decode_head', 'ignore_index'),
            ('model.decode_head', 'num_classes'),
        ]))  # fmt: skip
        node = cfg
        for part in place.split('.'):
            node = node[part]
        node[key] = draw(PATHS if key in ('ann_file', 'data_prefix') else ANYTHING)


def _outcome(cfg):
    """What the checks and the loading say: problems, or the samples."""
    problems = look(cfg, pixels=False)
    if problems:
        return problems, None
    found = look(cfg, pixels=True)
    try:
        samples = load(cfg)
    except UserError as error:
        assert found, error  # one set of rules
        return [*found, str(error)], None
    return found, samples


def _check_maps(draw):
    with tempfile.TemporaryDirectory() as folder:
        root = save_maps(Path(folder), images=2)
        cfg = segmenter(root)
        _mutate_maps(draw, root, cfg)
        problems, samples = _outcome(cfg)
        assert all('\n' not in line for line in problems)
        if problems or samples is None:
            assert problems
            return
        data = cfg.train_dataloader.dataset
        assert samples
        for sample in samples:
            info = sample['data_samples']
            raw = np.asarray(Image.open(info.seg_map_path)).astype(np.int64)
            if data.get('reduce_zero_label'):
                raw = np.where((raw == 0) | (raw == 255), 255, raw - 1)
            labels = info.gt_sem_seg.data[0].numpy()
            assert np.array_equal(labels, raw)
            assert labels.shape == info.ori_shape == sample['inputs'].shape[1:]
            ignored = data.get('ignore_index', 255)
            assert ((labels < cfg.model.decode_head.num_classes) | (labels == ignored)).all()
            assert ignored == cfg.model.decode_head.get('ignore_index', 255)


def _mutate_folders(draw, root, cfg):
    """Change one thing of right class folders, of a list, or of their data set's config."""
    data = cfg.train_dataloader.dataset
    what = draw(st.sampled_from(['folder', 'file', 'list', 'list', 'config']))
    train = root / 'train'
    if what == 'folder':
        name = draw(st.sampled_from(ANIMALS))
        new = draw(st.sampled_from(['Cat', 'zebra', '.git', '1', 'a b', 'dog2', 'DOG', 'é']))
        how = draw(st.sampled_from(['add', 'rename', 'remove', 'clear']))
        if how == 'add':
            (train / new).mkdir()
        elif how == 'rename':
            (train / name).rename(train / new)
        else:
            shutil.rmtree(train / name)
            if how == 'clear':
                (train / name).mkdir()
    elif what == 'file':
        draw(st.sampled_from([_resize, _replace]))(draw, train / 'dog/1.png')
    elif what == 'list':
        between = draw(st.sampled_from([' ', ' ', ' ', '\t', ',', ';', '  ', '']))
        labels = draw(st.sampled_from([(0, 1, 2), (0, 1, 2), (1, 2, 3), ANIMALS, (0, 1, 1.0),
                                       (-1, 0, 1), (0, 2**70, 1), ('', 1, 2)]))  # fmt: skip
        lines = [
            f'{name}/0.png{between}{label}' for name, label in zip(ANIMALS, labels, strict=True)
        ]
        extra = draw(
            st.sampled_from([None, '', 'dog/2.png 1', '../x 0', 'dog/0.png', 'path label'])
        )
        if extra is not None:
            lines.insert(draw(st.integers(0, 3)), extra)
        encoding = draw(st.sampled_from(['utf-8', 'utf-8', 'utf-8-sig', 'utf-16']))
        (root / 'list.txt').write_text('\n'.join(lines), encoding=encoding)
        data.ann_file = 'list.txt'
    else:
        node, key = draw(st.sampled_from([
            (data.metainfo, 'classes'), (data, 'metainfo'), (data, 'with_label'),
            (data, 'ann_file'), (data, 'data_prefix'), (data, 'classes'),
            (cfg.train_dataloader, 'batch_size'), (cfg.model.head, 'num_classes'),
        ]))  # fmt: skip
        orders = st.permutations(ANIMALS)
        node[key] = draw(PATHS if key in ('ann_file', 'data_prefix') else ANYTHING | orders)


def _check_folders(draw):
    with tempfile.TemporaryDirectory() as folder:
        root = save_folders(Path(folder))
        cfg = classifier(root)
        _mutate_folders(draw, root, cfg)
        problems, samples = _outcome(cfg)
        assert all('\n' not in line for line in problems)
        if problems or samples is None:
            assert problems
            return
        data = cfg.train_dataloader.dataset
        folders = sorted(path.name for path in root.glob('train/*'))
        names = (data.get('metainfo') or {}).get('classes') or data.get('classes') or folders
        assert samples
        for sample in samples:
            info = sample['data_samples']
            name = Path(info.img_path).parent.name
            given = names[int(info.gt_label)]
            # Folders with other names than all classes cannot be compared.
            known = {n.casefold() for n in names} & {
                p.name.casefold() for p in root.glob('train/*')
            }
            assert given.casefold() == name.casefold() or not known


def _mutations(count):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks)


@pytest.mark.parametrize('check', [_check_maps, _check_folders])
@_mutations(20)
@given(data=st.data())
def test_one_mutation_of_right_data_is_right_or_one_line(check, data):
    check(data.draw)


@pytest.mark.slow
@pytest.mark.parametrize('check', [_check_maps, _check_folders])
@_mutations(150)
@given(data=st.data())
def test_many_mutations_of_right_data_are_right_or_one_line(check, data):
    check(data.draw)
