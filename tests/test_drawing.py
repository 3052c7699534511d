"""Pictures: colours of classes, captions in any script, objects that can be told apart."""

import colorsys
import itertools

import numpy as np
import pytest
from mmengine.config import Config
from PIL import ImageFont

from gcvit_mm.drawing import text
from gcvit_mm.drawing.canvas import Canvas
from gcvit_mm.drawing.palette import class_colors, class_names, instance_colors
from gcvit_mm.drawing.predictions import as_rgb, draw_prediction
from gcvit_mm.inference.prediction import Object, Prediction, encoded

RED, BLUE = (255, 0, 0), (0, 0, 255)
NONCHARACTER = '\uffff'
"""No font has it: what is drawn for it is the glyph for what is missing."""


def written(*lines):
    canvas = Canvas(np.zeros((60, 200, 3), np.uint8), [], [])
    canvas.lines(lines)
    return canvas.finish()


# --- Colours ----------------------------------------------------------------------------------


def colors_of(classes, **dataset):
    cfg = Config(dict(default_scope='mmdet'))
    return class_colors(cfg, Config(dict(type='CocoDataset', **dataset)), classes)


def test_a_class_has_the_color_that_its_data_set_gives():
    given = dict(classes=['a', 'b'], palette=[RED, BLUE])
    assert colors_of(['a', 'b'], metainfo=given) == [RED, BLUE]


def test_colors_of_other_classes_are_not_inherited():
    """COCO's first three reds look alike, and a palette that is too short is none."""
    own = colors_of(['a', 'b', 'c'], metainfo=dict(classes=['a', 'b', 'c']))
    too_few = colors_of(['a', 'b', 'c'], metainfo=dict(classes=['a', 'b', 'c'], palette=[RED]))
    assert own == too_few
    hues = [colorsys.rgb_to_hls(*(part / 255 for part in color))[0] for color in own]
    for one, other in itertools.combinations(hues, 2):
        assert 0.1 < abs(one - other) < 0.9


def test_names_of_classes_are_texts():
    assert class_names({'classes': 'disk'}) == ['disk']  # ('disk') without a comma
    assert class_names({'classes': (1, 2)}) == ['1', '2']
    assert class_names({'classes': None}) == class_names({}) == []


@pytest.mark.parametrize('channels', [None, 1, 2, 3, 4, 7])
def test_pictures_show_the_first_three_channels_or_grey(channels):
    size = (5, 6, channels) if channels else (5, 6)
    pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    picture = as_rgb(pixels)
    assert picture.shape == (5, 6, 3)
    for i in range(3):
        expected = pixels[..., 2 - i] if (channels or 0) > 2 else pixels.reshape(5, 6, -1)[..., 0]
        assert np.array_equal(picture[..., i], expected)


def test_objects_of_a_class_have_shades_of_its_color():
    colors = instance_colors([0, 1, 0, 0, 0, 1], [RED, BLUE])
    assert colors[:2] == [RED, BLUE]
    assert len(set(colors)) == len(colors)
    for color, channel in zip(colors, (0, 2, 0, 0, 0, 2), strict=True):
        assert np.argmax(color) == channel
    masks = np.zeros((2, 100, 200), np.uint8)
    masks[0, :, 20:80], masks[1, :, 120:180] = 1, 1
    canvas = Canvas(np.zeros((100, 200, 3), np.uint8), ['a'], [RED])
    canvas.objects([(20, 0, 80, 99), (120, 0, 180, 99)], [0, 0], masks)
    picture = canvas.finish()
    assert (picture[60, 50] != picture[60, 150]).any()
    assert not picture[60, 90:110].any()


def test_objects_of_the_only_class_have_different_hues():
    colors = instance_colors([0] * 4, [RED])
    assert colors[0] == RED
    hues = [colorsys.rgb_to_hls(*(part / 255 for part in color))[0] for color in colors]
    for one, other in itertools.combinations(hues, 2):
        assert 0.05 < abs(one - other) < 0.95


def test_an_object_is_outlined_by_its_mask_or_else_by_its_box():
    mask = np.zeros((1, 200, 200), np.uint8)
    mask[0, 90:110, 90:110] = 1
    for masks, corner in ((mask, False), ((), True)):
        canvas = Canvas(np.zeros((200, 200, 3), np.uint8), ['a', 'b'], [RED, BLUE])
        canvas.objects([(40, 40, 160, 160)], [0], masks)
        picture = canvas.finish()
        assert picture[160, 160].any() == corner
        assert picture[100, 90].any() != corner


# --- Captions ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['собака', 'كلب', '狗'])
def test_names_of_any_script_are_drawn_with_the_glyphs_of_a_font(name):
    fonts = {one: text.font_of(one) for one in name}
    if not all(fonts.values()):
        pytest.skip('no installed font covers it')
    assert text.class_name([name], 0) == name
    for one, file in fonts.items():
        font = ImageFont.truetype(file, 20)
        assert bytes(font.getmask(one)) != bytes(font.getmask(NONCHARACTER))
    assert (written(name) != written(NONCHARACTER * len(name))).any()


def test_a_name_that_no_font_covers_is_escaped_after_its_number(monkeypatch, caplog):
    for function in (text.font_of, text._legible, text._warn):
        function.cache_clear()
    monkeypatch.setattr(text, '_fonts', lambda: [text.FIRST])
    warned = []
    monkeypatch.setattr(text, 'print_log', lambda message, **_: warned.append(message))
    names = ['dog', 'собака', '狗', '猫']
    shown = [text.class_name(names, label) for label in range(len(names))]
    text.font_of.cache_clear()
    text._legible.cache_clear()
    assert shown == ['dog', 'собака', r'2 \u72d7', r'3 \u732b']
    assert len(warned) == 1
    assert 'install a font' in warned[0]


def test_dollars_and_control_characters_are_drawn_as_text():
    assert text.class_name(['$x$'], 0) == '$x$'
    assert text.Line('$x$', 20).width > text.Line('$x', 20).width > text.Line('x', 20).width
    assert np.array_equal(written('a\nb\x00'), written(r'a\nb\x00'))


def test_captions_stay_inside_the_picture_and_off_each_other():
    canvas = Canvas(np.zeros((200, 200, 3), np.uint8), [], [])
    colors = [(20 * i, 90, 200) for i in range(1, 9)]
    for i, color in enumerate(colors):
        canvas.caption(f'caption {i}', (195, 3 * i), color)
    canvas.caption('a caption that is longer than a picture of 200 pixels', (0, 150), RED)
    picture = canvas.finish()
    taken = np.zeros(picture.shape[:2], int)
    for color in (*colors, RED):
        rows, columns = (picture == color).all(-1).nonzero()
        if len(rows):
            taken[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] += 1
    assert taken.max() == 1
    assert sum((picture == color).all(-1).any() for color in colors) > 4
    assert (picture[140:160] == RED).all(-1).sum() > 500


def test_outlines_are_seen_on_dark_and_on_light():
    for light in (0, 255):
        canvas = Canvas(np.full((100, 100, 3), light, np.uint8), ['a'], [(light,) * 3])
        canvas.objects([(20, 40, 80, 80)], [0])
        assert (np.abs(canvas.finish()[38:42, 50].astype(int) - light) > 200).any()


def test_a_picture_of_a_tiny_image_is_drawn_without_captions_that_do_not_fit():
    prediction = Prediction(objects=(Object(0, 0.9, (0, 0, 3, 3)),))
    picture = draw_prediction(np.zeros((4, 4, 3), np.uint8), prediction, ['a'], [RED], 0.5)
    assert picture.shape == (4, 4, 3)


def test_images_in_any_memory_order_are_drawn_alike():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 10:30] = 1
    found = Prediction(objects=(Object(0, 0.9, (10, 5, 30, 20), encoded(mask)),))
    drawn = draw_prediction(image, found, ['cat'], [(255, 0, 0)], 0.5)
    other = draw_prediction(np.asfortranarray(image), found, ['cat'], [(255, 0, 0)], 0.5)
    assert np.array_equal(drawn, other) and not np.array_equal(drawn, image)
