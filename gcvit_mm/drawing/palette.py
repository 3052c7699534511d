"""The colour of a class, in all pictures, and its shades for the instances of the class."""

import colorsys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from mmengine.config import Config, ConfigDict

from ..config import metainfo_of

Color: TypeAlias = tuple[int, int, int]
"""(R, G, B), from 0 to 255."""
GOLDEN = 0.618034
DARKEST, LIGHTEST = 0.3, 0.8
"""Lightness of the shades of a colour."""


def class_colors(cfg: Config, dataset: ConfigDict, classes: Sequence[str]) -> list[Color]:
    """Choose a colour for each class.

    Colours are those that the config or the data set's class gives, where there is one for each
    class. Those that come with other classes do not count: the first of many look alike.

    Args:
        cfg: The config.
        dataset: The config of the data set.
        classes: Names of the classes.
    """
    given, known = metainfo_of(cfg, dataset), metainfo_of(cfg, ConfigDict(type=dataset.type))
    own, names = given.get('palette') or (), list(classes)
    inherited = own == known.get('palette') and names != list(known.get('classes') or ())
    if inherited or isinstance(own, str) or len(own) < len(names):
        own = ()
    return [color_of(own, label) for label in range(len(names))]


def color_of(palette: Sequence[Iterable[int]], label: int) -> Color:
    """The colour of a class; one by the golden angle, far from its neighbours', if it has none."""
    if label < len(palette):
        red, green, blue = map(int, palette[label])
        return red, green, blue
    return _rgb((0.52 + GOLDEN * label) % 1, (0.62, 0.5)[label % 2], 0.9)


def instance_colors(labels: Iterable[int], palette: Sequence[Iterable[int]]) -> list[Color]:
    """Colours of objects: the first of a class has the colour of the class, others its shades."""
    before: Counter = Counter()
    colors = []
    for label in labels:
        hue, lightness, saturation = colorsys.rgb_to_hls(
            *(part / 255 for part in color_of(palette, label))
        )
        if before[label]:
            span = LIGHTEST - DARKEST
            steps = (lightness - DARKEST) / span + GOLDEN * before[label]
            lightness = DARKEST + steps % 1 * span
        colors.append(_rgb(hue, lightness, saturation))
        before[label] += 1
    return colors


def contrast(color: Color) -> Color:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)


def _rgb(hue: float, lightness: float, saturation: float) -> Color:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)
