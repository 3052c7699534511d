"""The pictures show what a training feeds its model, with its annotations in their places."""

import re
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from command_line import NANO, TRAIN_IMAGES, fail, on, succeed
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from gcvit_mm.config import read_config
from gcvit_mm.drawing.ground_truth import draw_truth
from gcvit_mm.drawing.model_inputs import Feed, to_pictures

FAMILIES = ('mmdet', 'mmseg', 'mmpretrain')


def small_config(family, data, folder):
    """A training of two steps of four images, twice."""
    if family == 'mmpretrain':
        for number, image in enumerate(sorted((data / 'images/training').glob('*'))):
            target = folder / f'images/class {number % 2}' / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
        cfg = read_config('gcvit_xxtiny_imagenet')
        dataset = dict(
            type='CustomDataset',
            data_prefix=str(folder / 'images'),
            pipeline=cfg.train_pipeline,
        )
        cfg.train_dataloader.dataset = dataset
        cfg.data_preprocessor.num_classes = cfg.model.head.num_classes = 2
        cfg.custom_hooks = []
        cfg.train_dataloader.dataset.pipeline[1].scale = 64
    else:
        name = 'upernet' if family == 'mmseg' else 'mask_rcnn'
        cfg = read_config(f'{name}_gcvit_nano_shapes')
        cfg.train_dataloader.dataset.data_root = str(data)
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    limit = dict(max_iters=4) if family == 'mmseg' else dict(max_epochs=2)
    cfg.train_cfg = dict(type=cfg.train_cfg.type, val_interval=9, val_begin=9, **limit)
    for split in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{split}_{part}'] = None
    cfg.randomness = dict(seed=3)
    cfg.work_dir = str(folder / 'work')
    return cfg


@pytest.mark.parametrize(
    'family', [FAMILIES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES[1:])]
)
def test_the_feed_is_what_a_training_gives_its_model(family, tiny_shapes, tmp_path):
    cfg = small_config(family, tiny_shapes, tmp_path)
    shown = []
    for epoch in (1, 2):
        feed = Feed(cfg, 'train', seed=3, epoch=epoch)
        batches = iter(feed)
        shown += [next(batches)[0] for _ in range(2)]
    runner = Runner.from_cfg(cfg)
    given = []
    runner.model.data_preprocessor.register_forward_hook(
        lambda module, inputs, output: given.append(output['inputs'].clone())
    )
    runner.train()
    assert len(given) == len(shown) == 4
    for ours, theirs in zip(shown, given, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not torch.equal(shown[0], shown[2])


def test_pictures_are_the_images_again(tiny_shapes):
    cfg = read_config(NANO)
    cfg.val_dataloader.dataset.data_root = str(tiny_shapes)
    feed = Feed(cfg, 'val', seed=0)
    inputs, samples = next(iter(feed))
    for picture, sample in zip(to_pictures(feed.preprocessor, inputs), samples, strict=True):
        image = cv2.imread(sample.metainfo['img_path'])[..., ::-1]
        np.testing.assert_array_equal(picture[: image.shape[0], : image.shape[1]], image)


@pytest.mark.parametrize('channels', [1, 4])
def test_pictures_of_other_channels_are_grey_or_the_first_three(channels):
    pixels = torch.randint(0, 256, (2, channels, 5, 6), dtype=torch.uint8)
    preprocessor = SimpleNamespace(mean=9.0, std=3.0, _channel_conversion=True)
    pictures = to_pictures(preprocessor, (pixels - 9.0) / 3.0)
    first = [0, 0, 0] if channels == 1 else [2, 1, 0]  # BGR to RGB
    np.testing.assert_array_equal(pictures, pixels[:, first].permute(0, 2, 3, 1))


def draw(picture, sample, in_input):
    return draw_truth(picture, sample, ['a', 'b'], [(0, 255, 0), (0, 0, 255)], in_input)


@pytest.mark.parametrize('in_input', [True, False])
def test_objects_of_an_enlarged_image_are_drawn_on_it(in_input):
    # The file has 100 x 100 pixels, the model's input is 200 x 200 and padded to 200 x 240.
    side = 200 if in_input else 100
    mask = np.zeros((1, side, side), np.uint8)
    mask[0, side // 2 :, side // 2 :] = 1
    box = torch.tensor([[side // 2, side // 2, side - 1, side - 1]], dtype=torch.float32)
    sample = DetDataSample(metainfo=dict(img_shape=(200, 200), ori_shape=(100, 100)))
    sample.gt_instances = InstanceData(
        bboxes=box, labels=torch.tensor([0]), masks=BitmapMasks(mask, side, side)
    )
    drawn = draw(np.zeros((200, 240, 3), np.uint8), sample, in_input)
    assert drawn.shape == (600, 720, 3)
    assert not drawn[:270, :600].any()  # outside of the object and the caption above it
    assert drawn[275:295, 300:310].any()
    green = drawn[400:590, 400:590]
    assert (green[..., 1] > 80).all() and not green[..., ::2].any()
    assert len(np.unique(drawn[:, 610:])) == 2  # stripes


def test_what_a_loss_ignores_and_what_is_padding_can_be_told_apart():
    labels = torch.zeros(1, 500, 500, dtype=torch.uint8)
    labels[:, :, 250:] = 255
    labels[:, 400:] = 255
    sample = SegDataSample(metainfo=dict(img_shape=(400, 500), ori_shape=(40, 50)))
    sample.gt_sem_seg = PixelData(data=labels)
    drawn = draw(np.full((500, 500, 3), 100, np.uint8), sample, True)
    assert drawn.shape == (500, 500, 3)
    r, g, b = (drawn[200:390, 10:240, i].mean() for i in range(3))  # 'a', which is green
    assert g > r + 50 and g > b + 50
    r, g, b = (drawn[200:390, 260:490, i].mean() for i in range(3))
    assert r > g + 50 and r > b + 50
    assert drawn[200:390, 400:490].std(axis=(0, 1)).max() == 0
    assert drawn[410:490, 400:490].std(axis=(0, 1)).min() > 5


def test_a_page_has_the_pictures_and_says_what_was_done(tiny_shapes, tmp_path):
    out = tmp_path / 'out'
    arguments = '-n', 6, '--epoch', 2, '--seed', 5, '--out', out
    output = succeed('browse_dataset.py', NANO, *arguments, *on(tiny_shapes))
    assert f'6 of {TRAIN_IMAGES} samples, epoch 2, seed 5: {out}/index.html' in output
    page = (out / 'index.html').read_text()
    pictures = re.findall('<img src="([^"]+)"', page)
    assert len(set(pictures)) == 6
    assert sorted(pictures) == sorted(path.name for path in out.glob('*.png'))
    for name in pictures:
        assert cv2.imread(str(out / name)).shape == (512, 512, 3)
    assert page.count(f'{tiny_shapes}/images/training/') == 2 * 6  # in the name, and its 'alt'
    assert page.count('64 x 64 px for the model') == 6
    assert len(re.findall('flip: (none|horizontal|vertical|diagonal)', page)) == 6


def test_what_cannot_be_shown_is_named(tiny_shapes, tmp_path):
    out = '--out', tmp_path / 'out'
    error = fail('browse_dataset.py', NANO, *out, *on(tmp_path / 'gone'))
    assert f'data folder {tmp_path}/gone (train_dataloader) does not exist' in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_images_that_are_smaller_than_the_crop_are_shown(tiny_shapes, tmp_path):
    where = 'train_dataloader.dataset.data_root', 'train_dataloader.dataset.data_prefix'
    options = (
        f'{where[0]}={tiny_shapes}',
        f'{where[1]}.img_path=images/training',
        f'{where[1]}.seg_map_path=annotations/training',
    )
    arguments = '-n', 2, '--out', tmp_path / 'out', '--cfg-options', *options
    succeed('browse_dataset.py', 'mask2former_gcvit_tiny_ade20k', *arguments)
    pictures = [cv2.imread(str(file)) for file in tmp_path.glob('out/*.png')]
    assert [picture.shape for picture in pictures] == [(512, 512, 3)] * 2
