"""Pixel values, orientation and sizes mean the same to training, checks, inference and the page."""

import json
import os
from io import BytesIO

import numpy as np
import pytest
from mmengine.config import ConfigDict
from PIL import Image

from gcvit_mm.app.photo import read_photo
from gcvit_mm.datasets.check.images import ReadImage, check_images, read_image
from gcvit_mm.datasets.check.report import Report
from gcvit_mm.datasets.load_image import LoadWholeImage
from gcvit_mm.datasets.load_label_map import decode_map
from gcvit_mm.errors import UserError
from gcvit_mm.inference.images import Pipeline

RAMP = np.linspace(0, 1, 40 * 60).reshape(40, 60)
GREY = (RAMP * 255).round().astype(np.uint8)


def load(path, **settings):
    return LoadWholeImage(**settings)(dict(img_path=str(path)))['img']


def in_bits(bits, dtype=np.uint16):
    return Image.fromarray((RAMP * (2**bits - 1)).astype(dtype))


def with_alpha(mode):
    alpha = Image.new('L', (60, 40))  # transparent throughout
    image = Image.fromarray(GREY)
    if mode == 'LA':
        return Image.merge('LA', (image, alpha))
    return Image.merge('RGBA', (image, image, image, alpha))


def palette_with_alpha():
    image = Image.fromarray(GREY)
    image.putpalette([part for value in range(256) for part in (value, value, value)])
    image.info['transparency'] = bytes(256)
    return image


SCALED = {
    '16 bits': (in_bits(16), 'png'),
    '12 bits in 16': (in_bits(12), 'png'),
    '8 bits in 16': (in_bits(8), 'png'),
    '16 bits, TIFF': (in_bits(16), 'tif'),
    '16 bits in 32': (in_bits(16, np.int32), 'tif'),
    '12 bits in 32': (in_bits(12, np.int32), 'tif'),
    'grey': (Image.fromarray(GREY), 'png'),
    'grey with alpha': (with_alpha('LA'), 'png'),
    'colour with alpha': (with_alpha('RGBA'), 'png'),
    'palette with alpha': (palette_with_alpha(), 'png'),
    'CMYK': (Image.fromarray(GREY).convert('RGB').convert('CMYK'), 'tif'),
}


@pytest.mark.parametrize('kind', SCALED)
def test_values_are_scaled_to_8_bits_by_every_reader(kind, tmp_path):
    image, suffix = SCALED[kind]
    path = tmp_path / f'image.{suffix}'
    image.save(path)
    pixels = load(path)
    assert np.abs(pixels.astype(int) - GREY[..., None]).max() <= 1
    pipeline = Pipeline([ConfigDict(type='LoadWholeImage')])
    assert np.array_equal(pipeline.read(path), pixels)
    assert np.array_equal(pipeline.read(Image.open(path)), pixels)
    assert np.array_equal(np.asarray(read_photo(path))[..., ::-1], pixels)
    assert np.array_equal(load(path, color_type='grayscale'), pixels[..., 0])
    assert isinstance(read_image(str(path)), ReadImage)


def test_the_check_warns_of_images_that_are_scaled_differently(tmp_path):
    report = Report('train', 'images')
    for name, bits in {'a.png': 16, 'b.png': 16, 'dark.png': 12}.items():
        in_bits(bits).save(tmp_path / name)
    Image.fromarray(GREY).save(tmp_path / 'c.png')  # of 8 bits in the file, too
    check_images(report, sorted(map(str, tmp_path.iterdir())), str(tmp_path))
    (((severity, what), places),) = report.problems.items()
    assert severity == 'warning' and 'scaled differently' in what
    assert places == ['dark.png: 12 bits, first 16']


def test_single_bits_are_black_and_white(tmp_path):
    Image.fromarray(GREY > 99).save(tmp_path / 'bits.png')
    for color_type in ('color', 'unchanged'):
        pixels = load(tmp_path / 'bits.png', color_type=color_type)
        assert np.array_equal(pixels.reshape(40, 60, -1)[..., 0], 255 * (GREY > 99))


def png_of_16_bit_colors(path, most):
    """Pillow cannot write it, and reads its upper bytes."""
    import cv2

    cv2.imwrite(str(path), (RAMP * most).astype(np.uint16)[..., None].repeat(3, axis=2))


REFUSED = {
    'float from 0 to 1': (RAMP.astype(np.float32), 'floating-point numbers'),
    'float from 0 to 3000': ((RAMP * 3000).astype(np.float32), 'floating-point numbers'),
    'above 16 bits': ((RAMP * 99999).astype(np.int32), '0 to 99999'),
    'negative': ((RAMP * 255 - 3).astype(np.int32), '-3 to'),
    'dark colours': (4095, 'below 4096'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_values_without_a_scale_are_refused_by_every_reader(kind, tmp_path):
    values, said = REFUSED[kind]
    path = tmp_path / 'image.tif'
    if kind == 'dark colours':
        path = tmp_path / 'image.png'
        png_of_16_bit_colors(path, values)
    else:
        Image.fromarray(values).save(path)
    with pytest.raises(UserError, match=rf'{path}.*{said}.*--skip-bad-images'):
        load(path)
    assert said in read_image(str(path))
    pipeline = Pipeline([ConfigDict(type='LoadWholeImage')])
    for image in (path, Image.open(path)):
        with pytest.raises(UserError, match=said):
            pipeline.read(image)
    with pytest.raises(UserError, match=said):
        read_photo(path)


def progressive(extra: int) -> bytes:
    """A progressive JPEG, with its last scan once more for each of ``extra``."""
    file = BytesIO()
    exif = Image.Exif()
    exif[0x010E] = '\xff\xda' * 200  # no scans, but the description of the image
    Image.fromarray(GREY).save(file, 'JPEG', progressive=True, exif=exif)
    content = file.getvalue()
    return content[:-2] + extra * content[content.rindex(b'\xff\xda') : -2] + content[-2:]


def eps() -> bytes:
    file = BytesIO()
    Image.fromarray(GREY).save(file, 'EPS')
    return file.getvalue()


@pytest.mark.parametrize(
    ('make', 'said'), [(lambda: progressive(5000), 'scans'), (eps, 'EPS')], ids=['scans', 'EPS']
)
def test_files_that_take_minutes_or_run_programs_are_refused_by_every_reader(make, said, tmp_path):
    path = tmp_path / 'image.jpg'
    path.write_bytes(make())
    with pytest.raises(UserError, match=rf'{path}.*{said}'):
        load(path)
    assert said in read_image(str(path))
    pipeline = Pipeline([ConfigDict(type='LoadWholeImage')])
    for image in (path, Image.open(path)):
        with pytest.raises(UserError, match=said):
            pipeline.read(image)
    with pytest.raises(UserError, match=r'image\.jpg'):
        read_photo(path)
    with pytest.raises(ValueError, match=said):
        decode_map(path.read_bytes())


def test_progressive_jpegs_of_cameras_are_read(tmp_path):
    path = tmp_path / 'image.jpg'
    path.write_bytes(progressive(20) + os.urandom(10**7) + b'\xff\xda' * 200)  # with a video
    assert isinstance(read_image(str(path)), ReadImage)
    assert load(path).shape == (40, 60, 3)
    assert read_photo(path).size == (60, 40)


def test_colors_of_16_bits_keep_their_upper_byte(tmp_path):
    png_of_16_bit_colors(tmp_path / 'image.png', 2**16 - 1)
    assert np.abs(load(tmp_path / 'image.png')[..., 1].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize(
    ('bits', 'suffix'), [(8, 'png'), (8, 'tif'), (8, 'jpg'), (16, 'png'), (16, 'tif')]
)
def test_images_of_any_type_are_turned_upright_by_every_reader(bits, suffix, orientation, tmp_path):
    image = in_bits(16) if bits == 16 else Image.fromarray(GREY).convert('RGB')
    exif = image.getexif()
    exif[0x112] = orientation
    path, plain = tmp_path / f'turned.{suffix}', tmp_path / f'plain.{suffix}'
    image.save(path, exif=exif)
    image.save(plain)
    as_stored = load(plain)
    turns = {
        1: as_stored,
        2: as_stored[:, ::-1],
        3: as_stored[::-1, ::-1],
        4: as_stored[::-1],
        5: as_stored.swapaxes(0, 1),
        6: as_stored.swapaxes(0, 1)[:, ::-1],
        7: as_stored[::-1, ::-1].swapaxes(0, 1),
        8: as_stored.swapaxes(0, 1)[::-1],
    }
    pixels = load(path)
    assert np.array_equal(pixels, turns[orientation])
    checked = read_image(str(path))
    assert (checked.height, checked.width) == pixels.shape[:2]
    pipeline = Pipeline([ConfigDict(type='LoadWholeImage')])
    assert np.array_equal(pipeline.read(Image.open(path)), pixels)
    assert read_photo(path).size == pixels.shape[1::-1]


def test_all_channels_are_kept_if_the_config_says_so(tmp_path):
    values = np.arange(4, dtype=np.uint8) * np.ones((8, 9, 1), np.uint8)
    Image.fromarray(values).save(tmp_path / 'four.png')
    assert load(tmp_path / 'four.png', color_type='unchanged')[0, 0].tolist() == [2, 1, 0, 3]
    with pytest.raises(UserError, match='color_type colour: choose color'):
        LoadWholeImage(color_type='colour')


def test_images_above_pillows_limit_are_named_and_skipped(tmp_path, monkeypatch):
    path, listed = tmp_path / 'large.png', tmp_path / 'bad.txt'
    Image.new('1', (100, 30)).save(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(UserError, match=rf'{path}.*3000 pixels.*limit of 2000.*--skip-bad-images'):
        load(path)
    assert 'limit of 2000 pixels' in read_image(str(path))
    results = dict(img_path=str(path), height=30, width=100)
    skip = LoadWholeImage(on_bad='skip', bad_images_file=str(listed))
    assert skip(results) is None
    assert listed.read_text() == f'{path}\n'
    assert LoadWholeImage(on_bad='blank')(results)['img'].shape == (30, 100, 3)


def test_a_blank_image_has_the_size_of_its_label_map(tmp_path):
    (tmp_path / 'image.png').write_text('no image')
    Image.new('L', (50, 20)).save(tmp_path / 'map.png')
    results = dict(img_path=str(tmp_path / 'image.png'))
    blank = LoadWholeImage(on_bad='blank')
    assert not blank(dict(results))['img'].any()
    found = blank(dict(results, seg_map_path=str(tmp_path / 'map.png')))
    assert found['img_shape'] == found['ori_shape'] == (20, 50)
    with pytest.raises(UserError, match=r'image\.png cannot be read \(not an image\)'):
        load(tmp_path / 'image.png')


@pytest.mark.parametrize('on_bad', ['raise', 'skip', 'blank'])
def test_another_size_than_that_of_the_annotations_is_an_error(on_bad, tmp_path):
    image = Image.new('RGB', (96, 64))
    image.save(tmp_path / 'a.png')
    loader = LoadWholeImage(on_bad=on_bad)
    said = rf'{tmp_path}/a\.png: the annotation file says 64 x 96 pixels, the image has 96 x 64'
    with pytest.raises(UserError, match=said):
        loader(dict(img_path=str(tmp_path / 'a.png'), height=96, width=64))
    turned = image.getexif()
    turned[0x112] = 6
    image.save(tmp_path / 'a.png', exif=turned)
    loader(dict(img_path=str(tmp_path / 'a.png'), height=96, width=64))


def test_a_wrong_size_stops_training_and_evaluation(tiny_shapes, tmp_path):
    from gcvit_mm.config import read_config
    from gcvit_mm.drawing.model_inputs import Feed

    cfg = read_config('mask_rcnn_gcvit_nano_shapes')
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        content = json.loads((tiny_shapes / dataset.ann_file).read_text())
        content['images'] = [dict(entry, width=64, height=48) for entry in content['images']]
        wrong = tmp_path / f'{split}.json'
        wrong.write_text(json.dumps(content))
        dataset.update(data_root=str(tiny_shapes), ann_file=str(wrong))
        with pytest.raises(UserError, match='says 64 x 48 pixels, the image has 64 x 64'):
            next(iter(Feed(cfg, split, seed=0)))
