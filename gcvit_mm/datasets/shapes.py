"""A small generated data set of textured shapes, for demonstrations and tests without a download.

One folder serves detection and segmentation: each image has COCO instances and an ADE-style label
map, both taken from one z-buffer::

    ROOT/images/{training,validation}/000000.jpg
    ROOT/annotations/{training,validation}/000000.png    0 is background, 1..3 are CLASSES
    ROOT/annotations/instances_{training,validation}.json
    ROOT/request.json    settings of the data set, written first
    ROOT/shapes.json     written last, when the folder is complete
"""

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..fileio import atomic_write

CLASSES = ('disk', 'box', 'star')
# Colours for drawing labels, different from those of the objects of each class.
PALETTE = [[0, 230, 255], [255, 40, 220], [255, 220, 0]]
SPLITS = ('training', 'validation')

# Raise the version with every change of a written byte: folders of other versions are refused.
VERSION = 1
# The index decides which images have a crowd or are empty, so a split of 20 images has both kinds.
CYCLE, CROWD_TURN, EMPTY_TURN = 25, 7, 19
MAX_OBJECTS = 6
MIN_VISIBLE_FRACTION, MIN_VISIBLE_PIXELS = 0.4, 60
SUPERSAMPLE = 4
# Smallest and largest radius of each class, relative to the size of the image.
RADII = {'disk': (1 / 14, 1 / 6), 'box': (1 / 11, 1 / 5), 'star': (1 / 9, 1 / 4)}


@dataclass
class Shape:
    """One object of a scene, or one crowd."""

    label: int  # index into ``CLASSES``
    # Closed polygons, each (points, 2) as x, y in pixels; a crowd has many.
    outlines: list[np.ndarray]
    # The part of each pixel that the shape covers, (size, size) float32, 0 to 1.
    coverage: np.ndarray
    visible: np.ndarray  # the pixels of this shape in the z-buffer, (size, size) bool

    @property
    def is_crowd(self) -> bool:
        return len(self.outlines) > 1


def make_shapes(
    root: str | Path, *, train: int = 800, val: int = 120, size: int = 128, seed: int = 0
) -> Path:
    """Write the data set to a folder, unless the folder has it already.

    An interrupted folder is completed, and is identical to one that was not interrupted. Several
    processes may call this function for one folder at the same time. A folder with other files or
    settings raises a ``UserError``. The images are square, and ``size`` is their side in pixels.
    """
    root = Path(root)
    for name, value, low, high in (
        ('train', train, 1, 10**6),
        ('val', val, 1, 10**6),
        ('size', size, 64, 4096),
        ('seed', seed, 0, 2**63),
    ):
        if not low <= value <= high:
            raise UserError(f'{name} is {value}: set a number from {low} to {high}')
    request = {'version': VERSION, 'train': train, 'val': val, 'size': size, 'seed': seed}
    counts = dict(zip(SPLITS, (train, val), strict=True))
    try:
        if _claim(root, request) and _count_files(root) == counts:
            return root
        with tqdm(total=train + val, desc='shapes', unit='image', disable=None) as bar:
            for split, count in counts.items():
                _write_split(root, split, count, size, seed, bar)
        if _count_files(root) != counts:
            raise UserError(f'{root} contains images from elsewhere: delete it and run again')
        _write(root / 'shapes.json', _json_bytes({**request, 'images': counts}))
    except OSError as error:
        raise UserError(f'cannot write the shapes to {root}: {error.strerror or error}') from error
    return root


def _claim(root: Path, request: dict) -> bool:
    """Check that the folder is for this request; return whether it was completed before."""
    if root.exists() and not root.is_dir():
        raise UserError(f'{root} is a file: choose a folder')
    root.mkdir(parents=True, exist_ok=True)
    claim = root / 'request.json'
    if not claim.exists():
        # Another process that claims the folder just now may have a temporary file in it.
        foreign = [p.name for p in root.iterdir() if not p.name.startswith(('.', claim.name))]
        # Check again, as another process may have claimed the folder in the meantime.
        if foreign and not claim.exists():
            raise UserError(f'{root} contains other files ({foreign[0]}): choose a new folder')
        _write(claim, _json_bytes(request))
    try:
        present = json.loads(claim.read_bytes())
    except ValueError:
        present = None
    if present != request:
        raise UserError(
            f'{root} has other settings ({_brief(present)}) than requested ({_brief(request)}): '
            'choose another folder or delete this one'
        )
    return (root / 'shapes.json').exists()


def _brief(request: dict | None) -> str:
    return ', '.join(f'{k} {v}' for k, v in request.items()) if request else 'unreadable'


def _count_files(root: Path) -> dict[str, int]:
    """Count the images of each split; -1 if images, label maps and instances do not match."""
    counts = {}
    for split in SPLITS:
        images = {p.stem for p in (root / 'images' / split).glob('*.jpg')}
        maps = {p.stem for p in (root / 'annotations' / split).glob('*.png')}
        instances = root / 'annotations' / f'instances_{split}.json'
        counts[split] = len(images) if images == maps and instances.exists() else -1
    return counts


def _write_split(root: Path, split: str, count: int, size: int, seed: int, bar: tqdm) -> None:
    """Write the missing images and label maps of a split, and its instances."""
    image_folder, map_folder = root / 'images' / split, root / 'annotations' / split
    image_folder.mkdir(parents=True, exist_ok=True)
    map_folder.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        # Each image has its own generator, so it does not depend on which ones were drawn before.
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        shapes = lay_out(rng, size, index)
        image_file = image_folder / f'{index:06d}.jpg'
        map_file = map_folder / f'{index:06d}.png'
        if not image_file.exists():
            picture = paint(rng, shapes, size)
            _write(image_file, _encode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 95]))
        if not map_file.exists():
            _write(map_file, _encode('.png', semantic_map(shapes, size), []))
        images.append({'id': index, 'file_name': image_file.name, 'height': size, 'width': size})
        for shape in shapes:
            # Ids start at 1, because COCO's evaluation takes the id 0 for "no match".
            ids = {'id': len(annotations) + 1, 'image_id': index}
            annotations.append({**ids, **_annotation(shape)})
        bar.update()
    coco = {
        'info': {'description': f'shapes, {split}, seed {seed}', 'version': str(VERSION)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(CLASSES)],
    }
    _write(root / 'annotations' / f'instances_{split}.json', _json_bytes(coco))


def _json_bytes(value: dict) -> bytes:
    return (json.dumps(value, separators=(',', ':')) + '\n').encode()


def _encode(suffix: str, picture: np.ndarray, options: list[int]) -> bytes:
    return cv2.imencode(suffix, picture, options)[1].tobytes()


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path, durable=False) as file:
        file.write(data)


# The scene: positions of the shapes.


def lay_out(rng: np.random.Generator, size: int, index: int) -> list[Shape]:
    """Place the shapes of one scene; the index of the image decides whether it has none or a crowd.

    Shapes that others or the border would hide almost completely are dropped, so that every pixel
    of a shape is labelled.

    Returns:
        The shapes from back to front; their ``visible`` masks are disjoint.
    """
    if index % CYCLE == EMPTY_TURN:
        return []
    proposals = [_random_shape(rng, size) for _ in range(rng.integers(1, MAX_OBJECTS + 1))]
    if index % CYCLE == CROWD_TURN:
        proposals.insert(0, (CLASSES.index('disk'), _random_crowd(rng, size)))
    # From front to back, because the shapes in front decide how much of a shape is visible.
    shapes = []
    free = np.ones((size, size), bool)
    for label, outlines in proposals:
        coverage = _coverage(outlines, size)
        mask = coverage >= 0.5
        visible = mask & free
        whole = mask.sum() if len(outlines) > 1 else cv2.contourArea(outlines[0])
        if visible.sum() >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * whole):
            shapes.append(Shape(label, outlines, coverage, visible))
            free &= ~mask
    return shapes[::-1]


def _random_shape(rng: np.random.Generator, size: int) -> tuple[int, list[np.ndarray]]:
    """Draw a random class and an outline of it with its centre in the image."""
    label = int(rng.integers(len(CLASSES)))
    if CLASSES[label] == 'disk':
        points = _unit_circle(48) * (1, rng.uniform(0.65, 1))
    elif CLASSES[label] == 'box':
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.8, 0.8 * rng.uniform(0.5, 1))
    else:
        tips = int(rng.integers(5, 7))
        points = _unit_circle(2 * tips)
        points[1::2] *= rng.uniform(0.4, 0.55)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    smallest, largest = RADII[CLASSES[label]]
    radius = size * smallest * (largest / smallest) ** rng.uniform()
    outline = points @ np.array([(cos, sin), (-sin, cos)]) * radius + rng.uniform(0, size, 2)
    return label, [outline.astype(np.float32)]


def _random_crowd(rng: np.random.Generator, size: int) -> list[np.ndarray]:
    """Draw the outlines of a cluster of tiny disks."""
    count = int(rng.integers(25, 45))
    centres = rng.uniform(0.2, 0.8, 2) * size + rng.normal(0, size / 14, (count, 2))
    radii = rng.uniform(2, 3, count) * size / 128
    circle = _unit_circle(16)
    return [(c + r * circle).astype(np.float32) for c, r in zip(centres, radii, strict=True)]


def _unit_circle(points: int) -> np.ndarray:
    angles = np.arange(points) * (2 * np.pi / points)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _coverage(outlines: list[np.ndarray], size: int) -> np.ndarray:
    """Rasterise outlines, which may overlap, with smooth edges to (size, size) float32, 0 to 1."""
    fine = np.zeros((size * SUPERSAMPLE, size * SUPERSAMPLE), np.uint8)
    for outline in outlines:
        # OpenCV's integer coordinates are pixel centres; ``shift`` adds 4 fractional bits.
        points = np.rint((outline * SUPERSAMPLE - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(fine, [points], (255,), shift=4)
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


# The image: textures and colours of the shapes.


def paint(rng: np.random.Generator, shapes: list[Shape], size: int) -> np.ndarray:
    """Draw the scene, (size, size, 3) uint8; each class has its own texture and range of hues.

    The random generator is in the state after ``lay_out``; the shapes come from back to front.
    """
    picture = _background(rng, size)
    backdrop = picture.mean(axis=(0, 1))
    for shape in shapes:
        candidates = np.array([_colour(rng, shape.label) for _ in range(4)])
        # Take the colour of the highest contrast, so that a small network can detect the shape.
        colour = candidates[np.abs(candidates - backdrop).sum(axis=1).argmax()]
        skin = _crowd_skin(rng, shape, colour) if shape.is_crowd else _skin(rng, shape, colour)
        picture += shape.coverage[..., None] * (skin - picture)
    picture += rng.normal(0, 4, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator, label: int) -> tuple[float, ...]:
    """Draw a colour around the hue of a class, in BGR from 0 to 255."""
    hue = (label / len(CLASSES) + rng.normal(0, 0.1)) % 1
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 1), rng.uniform(0.4, 1))
    return tuple(255 * channel for channel in reversed(rgb))


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a gradient between two colours with soft clouds, (size, size, 3) float32."""
    start, end = rng.uniform(50, 205, (2, 3)).astype(np.float32)
    across = _waves(rng, size, period=4 * size)[0]
    across = (across - across.min()) / np.ptp(across)
    coarse = rng.normal(0, 14, (9, 9, 3)).astype(np.float32)
    clouds = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return start + across[..., None] * (end - start) + clouds


def _skin(rng: np.random.Generator, shape: Shape, colour: np.ndarray) -> np.ndarray:
    """Draw a surface of one main colour with the texture of the class, (size, size, 3) float32."""
    size = len(shape.coverage)
    u, v = _waves(rng, size, period=rng.uniform(5, 11) * size / 128)
    pattern: np.ndarray
    if CLASSES[shape.label] == 'disk':  # speckle
        pattern = cv2.GaussianBlur(rng.normal(0, 4, (size, size)).astype(np.float32), (5, 5), 1)
    elif CLASSES[shape.label] == 'box':  # stripes
        pattern = np.sin(u)
    else:  # checks
        pattern = np.sin(u) * np.sin(v)
    other = colour + np.where(colour < 128, 1, -1) * rng.uniform(40, 80)
    mix = np.clip(0.5 + 1.5 * pattern, 0, 1).astype(np.float32)[..., None]
    return (colour + mix * (other - colour)).astype(np.float32)


def _waves(rng: np.random.Generator, size: int, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Two phases in radians that grow in perpendicular directions, (size, size) each."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32) * np.float32(2 * np.pi / period)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _crowd_skin(rng: np.random.Generator, crowd: Shape, colour: np.ndarray) -> np.ndarray:
    """Draw overlapping disks of slightly different colours, (size, size, 3) float32."""
    skin = np.empty((*crowd.coverage.shape, 3), np.float32)
    skin[:] = colour
    for outline in crowd.outlines:
        shade = np.clip(colour + rng.uniform(-50, 50), 0, 255).tolist()
        cv2.fillPoly(skin, [np.rint((outline - 0.5) * 16).astype(np.int32)], shade, shift=4)
    return skin


# The labels.


def semantic_map(shapes: list[Shape], size: int) -> np.ndarray:
    """The label map, (size, size) uint8: 0 for background, otherwise 1 + label."""
    labels = np.zeros((size, size), np.uint8)
    for shape in shapes:
        labels[shape.visible] = shape.label + 1
    return labels


def _annotation(shape: Shape) -> dict:
    """The COCO annotation of a shape, computed from its visible pixels."""
    mask = shape.visible.astype(np.uint8)
    return {
        'category_id': shape.label + 1,
        'segmentation': _run_lengths(mask) if shape.is_crowd else trace(mask),
        'area': int(mask.sum()),
        'bbox': [float(v) for v in cv2.boundingRect(mask)],
        'iscrowd': int(shape.is_crowd),
    }


def _run_lengths(mask: np.ndarray) -> dict:
    """Encode a mask as COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=np.uint8(0)))
    runs = np.diff(changes, prepend=0, append=flat.size)
    return {'counts': runs.tolist(), 'size': list(mask.shape)}


def trace(mask: np.ndarray) -> list[list[float]]:
    """Trace the outlines of a mask (size, size) of 0 and 1 as flat lists x, y, ... in pixels."""
    # Contours run through pixel centres and lose half a pixel on each side; on a mask of 4 times
    # the resolution they lose an eighth.
    fine = cv2.resize(mask, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    contours, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for contour, parent in zip(contours, tree[0, :, 3], strict=True):
        if parent >= 0:
            # Polygons cannot have holes: cut the mask in two through the middle of the hole.
            column = int(contour[:, 0, 0].mean() / 4 + 0.5)
            left, right = mask.copy(), mask.copy()
            left[:, column:] = 0
            right[:, :column] = 0
            return trace(left) + trace(right)
    return [((contour.reshape(-1) + 0.5) / 4).tolist() for contour in contours]
