"""A detector that errs nowhere, cut into windows: merging them must give back the whole image."""

import os
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from pycocotools.coco import COCO

from gcvit_mm.inference.tiling.tiles import Piece, Window, blend, encode, merge, windows

SAMPLES = os.environ.get('GCVIT_MM_SAMPLES')
SIDES = st.integers(1, 90)
LAYOUTS = dict(
    height=SIDES,
    width=SIDES,
    tile=st.integers(12, 60),
    share=st.floats(0, 0.5),
    seed=st.integers(0, 2**32 - 1),
)


def grid_of(height, width, tile, share):
    return windows(height, width, tile, 1 + int(share * (tile - 2)))


def layout(height, width, seed):
    """A map of objects, numbered from 1 with 0 between them, and the class of each.

    Objects are cells around random points, many of which touch others of their class, of wavy
    outlines and of any size; each is connected.
    """
    random = np.random.default_rng(seed)
    count = random.integers(1, 25)
    y, x = np.mgrid[:height, :width] + random.normal(0, 2, (2, height, width)).round()
    points = random.uniform(0, [height, width], (count, 2))
    nearest = ((y - points[:, :1, None]) ** 2 + (x - points[:, 1:, None]) ** 2).argmin(0)
    cells = np.where(random.random(count)[nearest] < 0.8, nearest + 1, 0)
    objects = np.zeros((height, width), int)
    for cell in range(1, count + 1):
        parts, labels = cv2.connectedComponents((cells == cell).astype(np.uint8), connectivity=4)
        for part in range(1, parts):
            objects[labels == part] = objects.max() + 1
    return objects, random.integers(0, 2, objects.max() + 1)


def perfect(objects, classes, window, masks=True):
    """What a detector that errs nowhere finds in a window."""
    shown = window.of(objects)
    for number in np.unique(shown[shown > 0]):
        mask = shown == number
        box = box_of(mask, window.x1, window.y1)
        yield Piece(window, int(classes[number]), 0.5, box, *encode(mask, window)[: 2 * masks])


def box_of(mask, x=0, y=0):
    rows, columns = mask.nonzero()
    corners = columns.min() + x, rows.min() + y, columns.max() + x + 1, rows.max() + y + 1
    return tuple(map(float, corners))


def encoded(mask):
    return coco.encode(np.asfortranarray(mask))['counts']


def summary(found):
    return sorted((one.label, one.box, one.mask['counts']) for one in found)


@settings(max_examples=60, deadline=None)
@given(**LAYOUTS)
def test_objects_that_windows_cut_come_out_once_and_whole(height, width, tile, share, seed):
    objects, classes = layout(height, width, seed)
    flat = [window for row in grid_of(height, width, tile, share) for window in row]
    pieces = [piece for window in flat for piece in perfect(objects, classes, window)]
    assert summary(merge(pieces, height, width)) == sorted(
        (classes[number], box_of(mask), encoded(mask))
        for number in range(1, objects.max() + 1)
        for mask in [(objects == number).astype(np.uint8)]
    )


def test_what_a_border_leaves_of_an_object_goes_where_a_neighbour_has_the_whole():
    left, right = windows(40, 70, 40, 10)[0]
    whole, rest, far = np.zeros((3, 40, 70), bool)
    whole[10:20, 20:38], rest[10:20, 30:38], far[30:35, 30:36] = True, True, True

    def piece(window, label, mask):
        shown = window.of(mask)
        return Piece(window, label, 0.9, box_of(shown, window.x1), *encode(shown, window))

    # The second window takes what it sees of the object for something else.
    found = merge([piece(left, 0, whole), piece(right, 1, rest), piece(right, 1, far)], 40, 70)
    assert sorted(one.box for one in found) == [(20, 10, 38, 20), (30, 30, 36, 35)]


def two_windows(*masks):
    """A piece for each of two masks, the first in a left window, the second in a right one."""
    for window, mask in zip(windows(40, 70, 40, 10)[0], masks, strict=True):
        shown = window.of(mask)
        yield Piece(window, 0, 0.9, box_of(shown, window.x1), *encode(shown, window))


def test_neighbours_whose_masks_overlap_a_little_stay_two_objects():
    one, other = np.zeros((2, 40, 70), bool)
    one[10:20, 20:38], other[18:30, 32:60] = True, True
    assert len(merge(list(two_windows(one, other)), 40, 70)) == 2


def test_where_windows_differ_a_pixel_is_as_the_one_sees_it_that_has_it_deeper_inside():
    sloppy, exact = np.zeros((2, 40, 70), bool)
    # The windows share the columns 30 to 39; up to 34 the left one sees more.
    sloppy[10:20, 20:40], exact[10:22, 30:50] = True, True
    (found,) = merge(list(two_windows(sloppy, exact)), 40, 70)
    expected = np.zeros((40, 70), bool)
    expected[10:20, 20:35], expected[10:22, 35:50] = True, True
    assert np.array_equal(coco.decode(found.mask), expected)
    assert found.box == (20, 10, 50, 22)


@pytest.mark.skipif(not SAMPLES, reason='GCVIT_MM_SAMPLES is unset: no annotated photos here')
def test_objects_of_photos_enlarged_four_times_come_out_once_and_whole():
    truth = COCO(Path(SAMPLES, 'coco_small/instances.json'))
    checked = 0
    for image in truth.loadImgs(truth.getImgIds())[:5]:
        height, width = 4 * image['height'], 4 * image['width']
        found, expected = [], []
        for one in truth.loadAnns(truth.getAnnIds(image['id'], iscrowd=False)):
            mask = cv2.resize(truth.annToMask(one), (width, height), interpolation=0)
            # Parts far from each other are seen as objects of their own.
            if cv2.connectedComponents(mask, connectivity=4)[0] != 2:
                continue
            expected.append((one['category_id'], box_of(mask), encoded(mask)))
            for row in windows(height, width, 512, 128):
                for window in row:
                    if window.of(mask).any():
                        shown = window.of(mask).astype(bool)
                        box = box_of(shown, window.x1, window.y1)
                        label = one['category_id']
                        found.append(Piece(window, label, 0.5, box, *encode(shown, window)))
        assert summary(merge(found, height, width)) == sorted(expected)
        checked += len(expected)
    assert checked > 10


@settings(max_examples=50, deadline=None)
@given(**LAYOUTS)
def test_rectangles_of_a_detector_without_masks_come_out_once_and_whole(
    height, width, tile, share, seed
):
    random = np.random.default_rng(seed)
    rows, columns = (np.unique(random.integers(0, side, 6)) for side in (height, width))
    objects, classes = np.zeros((height, width), int), random.integers(0, 2, 50)
    boxes = [(x1, y1, x2, y2) for y1, y2 in pairwise(rows) for x1, x2 in pairwise(columns)]
    for number, box in enumerate(boxes, start=1):
        Window(*box).of(objects)[:] = number
    flat = [window for row in grid_of(height, width, tile, share) for window in row]
    pieces = [p for window in flat for p in perfect(objects, classes, window, masks=False)]
    found = merge(pieces, height, width)
    assert sorted((one.label, one.box) for one in found) == sorted(
        (classes[number], tuple(map(float, box))) for number, box in enumerate(boxes, start=1)
    )


@given(**LAYOUTS)
def test_windows_cover_the_image_and_share_what_was_asked_for(height, width, tile, share, seed):
    overlap = 1 + int(share * (tile - 2))
    grid = windows(height, width, tile, overlap)
    count = np.zeros((height, width), int)
    for row in grid:
        for window in row:
            shape = window.of(count).shape
            assert shape == (min(tile, height), min(tile, width))
            window.of(count)[:] += 1
        assert all(a.x2 - b.x1 >= overlap for a, b in pairwise(row))
    assert all(a[0].y2 - b[0].y1 >= overlap for a, b in pairwise(grid))
    assert count.min() > 0


@given(**LAYOUTS)
def test_scores_that_windows_agree_on_are_blended_to_themselves(height, width, tile, share, seed):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(3, height, width)).astype(np.float32)
    grid = grid_of(height, width, tile, share)

    def decide(blended):
        np.testing.assert_allclose(blended, expected.pop(0), rtol=1e-4, atol=1e-5)
        return blended.argmax(0)

    expected = []
    for r, row in enumerate(grid):
        for c, window in enumerate(row):
            below = grid[r + 1][0].y1 if r + 1 < len(grid) else height
            right = row[c + 1].x1 if c + 1 < len(row) else width
            expected.append(scores[:, window.y1 : below, window.x1 : right])
    cut = (scores[:, w.y1 : w.y2, w.x1 : w.x2] for row in grid for w in row)
    labels = blend(cut, grid, decide)
    assert not expected
    assert labels.shape == (height, width)
