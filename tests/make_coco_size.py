"""Write a made-up detection data set of COCO's size, to measure the start of a training.

    python tests/make_coco_size.py FOLDER [--share 0.1]

FOLDER becomes a ``data_root`` with COCO's names: 118,287 training images with 866,311 objects in
447 MB of JSON, and 5,000 validation images with 36,615 objects. All image files are links to one
JPEG file of 640 x 480 pixels, because training checks that each file exists.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {'train2017': (118_287, 866_311), 'val2017': (5_000, 36_615)}
WIDTH, HEIGHT = 640, 480
CROWDS = 0.01
POINTS = 23
"""Mean number of points of a polygon, for the bytes of COCO's own file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--share', type=float, default=1, help='share of the images; default: 1')
    args = parser.parse_args()
    make(args.folder, args.share)


def make(root: Path, share: float) -> None:
    from mmdet.datasets import CocoDataset

    rng = np.random.default_rng(0)
    categories = [
        dict(supercategory='thing', id=number, name=name)
        for number, name in enumerate(CocoDataset.METAINFO['classes'], 1)
    ]
    (root / 'annotations').mkdir(parents=True)
    pixels = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(root / 'image.jpg')
    shapes = outlines(rng, 2000)
    for split, counts in SPLITS.items():
        count, objects = (max(1, round(share * number)) for number in counts)
        (root / split).mkdir()
        names = [f'{number:012d}.jpg' for number in range(1, count + 1)]
        for name in names:
            os.symlink('../image.jpg', root / split / name)
        images = [
            dict(license=1, file_name=name, height=HEIGHT, width=WIDTH, id=number,
                 coco_url=f'http://images.cocodataset.org/{split}/{name}',
                 date_captured='2013-11-14 11:18:45')
            for number, name in enumerate(names, 1)
        ]  # fmt: skip
        with open(root / 'annotations' / f'instances_{split}.json', 'w') as file:
            file.write(f'{{"images": {json.dumps(images)}, "annotations": [')
            for number in range(1, objects + 1):
                entry = annotation(shapes, rng.random(7), number, count, len(categories))
                file.write(', ' * (number > 1) + entry)
            file.write(f'], "categories": {json.dumps(categories)}}}')


def outlines(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Polygons (points, 2) that touch all sides of the unit square."""
    made = []
    for points in rng.geometric(1 / (POINTS - 6), count) + 6:
        angles = np.concatenate([np.arange(4) * np.pi / 2, rng.uniform(0, 2 * np.pi, points - 4)])
        angles.sort()
        made.append(np.stack([np.cos(angles), np.sin(angles)], 1) / 2 + 0.5)
    return made


def annotation(
    shapes: list[np.ndarray], numbers: np.ndarray, number: int, images: int, categories: int
) -> str:
    """One object as JSON, from seven random numbers between 0 and 1."""
    x, y, width, height, shape, image, crowd = numbers.tolist()
    width, height = round(20 + 180 * width, 2), round(20 + 180 * height, 2)
    x, y = round(x * (WIDTH - width), 2), round(y * (HEIGHT - height), 2)
    segmentation: dict | list
    if crowd < CROWDS:
        x, y, width, height = map(round, (x, y, width, height))
        runs = [x * HEIGHT + y, *([height, HEIGHT - height] * width)]
        runs[-1] = HEIGHT * WIDTH - sum(runs[:-1])
        segmentation = dict(counts=runs, size=[HEIGHT, WIDTH])
    else:
        outline = shapes[int(shape * len(shapes))] * (width, height) + (x, y)
        segmentation = [outline.ravel().round(2).tolist()]
    return json.dumps(
        dict(segmentation=segmentation, area=round(0.7 * width * height, 4),
             iscrowd=int(crowd < CROWDS), image_id=int(image * images) + 1,
             bbox=[x, y, width, height], category_id=number % categories + 1, id=number)
    )  # fmt: skip


if __name__ == '__main__':
    main()
