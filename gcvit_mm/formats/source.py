"""The files of a folder with labels, and the neutral records that the readers of formats yield."""

import json
import os
import posixpath
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from PIL import Image

from ..datasets.check.report import Report
from ..datasets.load_image import reason
from ..errors import UserError
from .dataset import FILE

Item = TypeVar('Item')
Result = TypeVar('Result')

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.gif', '.ppm', '.pgm')
SPLITS = {
    **dict.fromkeys(('train', 'training', 'trainval'), 'train'),
    **dict.fromkeys(('val', 'valid', 'validation', 'dev'), 'val'),
    **dict.fromkeys(('test', 'testing'), 'test'),
}
JUNK = ('__MACOSX', 'Thumbs.db', 'desktop.ini', '@eaDir')
NAME_FILES = r'(.*classes|labels|(class|label)_?names|obj)\.(txt|names|json)'
MASK_WORDS = (
    r'masks?|labels?|label_?ids|annot(ation)?s?|seg(m|mentation)?|gt(_?fine)?|ground_?truth|L|'
    'semantic|instances?'
)


class Skip(Exception):
    """An entry that is not used: what is wrong, and the detail."""


@dataclass
class Object:
    """A labelled object."""

    name: str  # its class
    box: list[float] | None = None  # x, y, width, height; it may be missing if there is a mask
    mask: Any = None  # polygons [x, y, x, y, ...], or COCO's run lengths
    crowd: bool = False  # a group, which counts neither as an object nor as background
    area: float | None = None
    group: str = ''  # polygons of one group and class are one object


@dataclass
class Record:
    """The labels of an image."""

    image: str  # its path in the source
    place: str  # the label file
    split: str = ''  # '' if the label file does not say it
    objects: list[Object] = field(default_factory=list)
    label: str = ''  # the class of the whole image
    label_map: Callable[[], np.ndarray] | None = None  # reads (H, W), where 255 is ignored
    told: tuple[int, int] = (0, 0)  # width and height of the image according to the label file
    # Of an image that is used:
    name: str = ''  # its path below the folder of images
    size: tuple[int, int] = (0, 0)  # width and height in pixels
    annotations: list[dict] = field(default_factory=list)  # COCO's, with the ``name`` of the class
    present: list[str] = field(default_factory=list)  # the class of each object, or all classes


class Source:
    """A folder with images and labels. Names in label files mean files of this folder only."""

    def __init__(self, root: Path, written: Path, task: str = '', format: str = '') -> None:
        self.root = root
        self.task, self.format = task, format  # as the person chose, or '' until they are known
        self.files = sorted(self._walk(written))
        self.images = {normal(f): f for f in self.files if suffix(f) in SUFFIXES}
        self.classes: list[str] = []  # in the order of the labels, as far as they are declared
        self.palette: dict[str, tuple[int, int, int]] = {}
        self.labelled: set[str] = set()  # images that label files name
        self.listed: dict[str, str] = {}  # the splits of images that lists name
        self.masks: dict[str, list[str]] = {}  # by image, after they have been looked for
        self.kind: str | None = None  # of masks: '' if there are none, None if it is not known yet
        self.report = Report('labels', str(root))
        self._parsed: dict[str, Any] = {}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in self.images.values():
            name = normal(posixpath.basename(path)).casefold()
            for key in (name, posixpath.splitext(name)[0]):
                self._by_name[key].append(path)

    def _walk(self, written: Path) -> Iterator[str]:
        seen: set[str] = set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)
            own = FILE in files and Path(folder) != self.root
            if real in seen or own or Path(folder) == written:  # links may form a circle
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if name[0] != '.' and name not in JUNK]
            inside = os.path.relpath(folder, self.root).replace(os.sep, '/')
            names = (name for name in files if name[0] != '.' and name not in JUNK)
            yield from (posixpath.normpath(f'{inside}/{name}') for name in names)

    def find(self, *suffixes: str) -> list[str]:
        return [path for path in self.files if suffix(path) in suffixes]

    def parse(self, path: str) -> Any:
        """The content of a JSON, XML or YAML file; None if it is that of an image, and broken."""
        if path not in self._parsed:
            try:
                self._parsed[path] = PARSERS[suffix(path)]((self.root / path).read_bytes())
            except (OSError, ValueError, RecursionError, SyntaxError, yaml.YAMLError) as error:
                problem = f'{path}: {" ".join(str(error).split())}'
                if not self.named(stem(path)):
                    what = f'label file {self.root}/{problem}: export it again, or delete it'
                    raise UserError(what) from error
                self.report.add('warning', 'label file cannot be read', problem)
                self._parsed[path] = None
        return self._parsed[path]

    def lines(self, path: str) -> list[str]:
        """The lines of a text file that are not blank."""
        content = (self.root / path).read_bytes()
        wide = content[:2] in (b'\xff\xfe', b'\xfe\xff')  # as PowerShell writes
        try:
            text = content.decode('utf-16' if wide else 'utf-8-sig')
        except ValueError:
            text = content.decode('latin-1')
        return [line.strip() for line in text.splitlines() if line.strip()]

    @cached_property
    def names(self) -> list[str]:
        """The names of a file such as classes.txt; numbers before them are removed."""
        for path in self.files:
            if not re.fullmatch(NAME_FILES, posixpath.basename(path), re.I):
                continue
            if suffix(path) != '.json':
                lines = self.lines(path)
                pairs = [re.fullmatch(r'\d+[\s:,]+(.*\D.*)', line) for line in lines]
                return [pair[1] for pair in pairs if pair] if all(pairs) else lines
            content = self.parse(path)
            names = content.get('classes') if isinstance(content, dict) else content
            if names and isinstance(names, list) and all(isinstance(name, str) for name in names):
                return names
        return []

    def declare(self, name: Any, color: str | None = None) -> None:
        """Add a class, and its colour #RRGGBB."""
        if named(name) not in self.classes:
            self.classes.append(named(name))
        if color and len(color) == 7:
            red, green, blue = bytes.fromhex(color[1:])
            self.palette[named(name)] = red, green, blue

    # Entries of label files.

    @contextmanager
    def entry(self, place: str) -> Iterator[None]:
        """Skip an entry that cannot be read, and report it."""
        try:
            yield
        except Skip as skip:
            self.report.add('warning', skip.args[0], ': '.join([place, *map(str, skip.args[1:])]))
        except KeyError as error:
            self.report.add('warning', 'entry without a field', f'{place}: {error}')
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            self.report.add('warning', 'entry cannot be read', f'{place}: {error}')

    def each(
        self, function: Callable[[Item], Result | None], items: Iterable[Item], place: str
    ) -> list[Result]:
        """The results of a function for all entries that can be read."""
        results = []
        for number, item in enumerate(items, 1):
            with self.entry(f'{place}, entry {number}'):
                if (result := function(item)) is not None:
                    results.append(result)
        return results

    def first_problem(self) -> str:
        """The end of a message: the first reason why nothing is left."""
        problems = self.report.problems.items()
        found = (f': {what}, {places[0]}' for (kind, what), places in problems if kind != 'note')
        return next(found, '')

    # Images.

    def named(self, name: str) -> list[str]:
        """The images of a name, with its suffix or without it, in any letters."""
        return self._by_name.get(normal(name).casefold(), [])

    def image(self, near: str, *names: str | None) -> str:
        """Find the image that the label file ``near`` names."""
        image = self.locate(near, *names)
        self.labelled.add(image)
        return image

    def locate(self, near: str, *names: str | None) -> str:
        """Find an image, wherever it lay when the file ``near`` named it.

        The names are in the order of trust; one is a path, of Windows too, or has no suffix.
        ``Skip`` if there is no such image in the folder, or several are equally likely.
        """
        try:
            return self._locate(near, names[0] or '')
        except Skip:
            if len(names) == 1:
                raise
            with suppress(Skip):
                return self.locate(near, *names[1:])
            raise

    def _locate(self, near: str, name: str) -> str:
        name = normal(name.strip().replace('\\', '/'))
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(near), name))
        for path in (beside, posixpath.normpath(name)):
            if path in self.images:
                return self.images[path]
        found = self.named(posixpath.basename(name))
        found = [path for path in found if not is_mask(path)] or found
        found = self.nearest(found, f'{name}/../{near}')
        if len(found) == 1:
            return found[0]
        if found:
            raise Skip('several images have this name', f'{name} is {found[0]} or {found[1]}')
        if beside.startswith('..') or name.startswith('/') or name[1:2] == ':':
            raise Skip('image is outside the folder', name)
        raise Skip('image is missing', name)

    def nearest(self, images: list[str], near: str) -> list[str]:
        """Of images of one name, those whose folders have most words in common with a path."""
        hints = words(near)
        likeness = [len(words(posixpath.dirname(path)) & hints) for path in images]
        return [p for p, like in zip(images, likeness, strict=True) if like == max(likeness)]

    def open(
        self, image: str, read: Callable[[Image.Image], Result], what: str = 'image'
    ) -> Result:
        """Read from an image or a mask; ``Skip`` if that fails."""
        try:
            with Image.open(self.root / image) as opened:
                return read(opened)
        except Exception as error:  # decoders raise all kinds of errors for damaged files
            raise Skip(f'{what} cannot be read', f'{image}: {reason(error)}') from error


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document types, whose entities can fill the memory or name other files."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError(f'it declares a document type ({name}), which label files do not need')


def _without_pixels(pairs: list[tuple[str, Any]]) -> dict:
    return {key: value for key, value in pairs if key != 'imageData'}  # of LabelMe


PARSERS: dict[str, Callable[[bytes], Any]] = {
    '.json': partial(json.loads, object_pairs_hook=_without_pixels),
    '.xml': lambda text: ElementTree.fromstring(text, ElementTree.XMLParser(target=_NoDoctype())),
    '.yaml': yaml.safe_load,
    '.yml': yaml.safe_load,
}


def named(name: Any) -> str:
    """The name of a class; ``Skip`` if there is none."""
    if not isinstance(name, str) or not name.strip():
        raise Skip('object without a class', repr(name))
    return name.strip()


def normal(path: str) -> str:
    """A path with composed letters: macOS writes ü as u and dots."""
    return unicodedata.normalize('NFC', path)


def suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def words(path: str) -> set[str]:
    """The words of a path: those of trainannot/a_2.png are train, a, 2 and png."""
    text = re.sub(r'annot(ation)?s?|labels?|masks?|images?', ' ', path.lower())
    return set(re.findall(r'[^\W\d_]+|\d+', text))


def split_of(path: str) -> str:
    """The split that a path names, such as 'val' for annotations/instances_val2017.json, or ''.

    A folder must be named after a split alone, since train station may be a class.
    """
    *folders, file = path.split('/')
    if found := [SPLITS[word] for word in sorted(words(file)) if word in SPLITS]:
        return found[0]
    for folder in reversed(folders):
        parts = {word for word in words(folder) if not word.isdecimal()} - {'set', 'full', 'img'}
        if len(parts) == 1 and (word := parts.pop()) in SPLITS:
            return SPLITS[word]
    return ''


def is_mask(path: str) -> bool:
    """Whether the path of an image says that it is a mask."""
    folders = posixpath.dirname(path)
    return bool(
        re.search(rf'[-_. ]({MASK_WORDS})$', stem(path), re.I)
        or re.search(rf'(?<![a-z])({MASK_WORDS})(?![a-z])', folders, re.I)
        or re.search(r'(masks?|annot|segmentation(class|object))(?![a-z])', folders, re.I)
    )
