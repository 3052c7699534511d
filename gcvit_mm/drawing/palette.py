"""Colours of classes, and their shades for instances."""

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from mmengine.config import Config, ConfigDict

from ..config import metainfo_of

Color: TypeAlias = tuple[int, int, int]
"""(R, G, B), from 0 to 255."""
GOLDEN = 0.618034
DARKEST, LIGHTEST = 0.3, 0.8
"""Range of the lightness of shades."""


def class_names(metainfo: Mapping[str, Any]) -> list[str]:
    """The names of the classes in a data set's metainfo; a single text is one name."""
    classes = metainfo.get('classes') or ()
    return [classes] if isinstance(classes, str) else list(map(str, classes))


def class_colors(cfg: Config, dataset: ConfigDict, classes: Sequence[str]) -> list[Color]:
    """Choose a colour for each class.

    The palette of the config or the data set's class is used if it has a colour for each class. A
    palette of other classes is not, because its first colours may look alike.
    """
    meta, defaults = metainfo_of(cfg, dataset), metainfo_of(cfg, ConfigDict(type=dataset.type))
    palette, names = meta.get('palette') or (), list(classes)
    inherited = palette == defaults.get('palette') and names != list(defaults.get('classes') or ())
    if inherited or isinstance(palette, str) or len(palette) < len(names):
        palette = ()
    return [color_of(palette, label) for label in range(len(names))]


def color_of(palette: Sequence[Iterable[int]], label: int) -> Color:
    """Return the colour of a class, or one of a sequence of distinct hues if it has none."""
    if label < len(palette):
        red, green, blue = map(int, palette[label])
        return red, green, blue
    return _rgb((0.52 + GOLDEN * label) % 1, (0.62, 0.5)[label % 2], 0.9)


def instance_colors(labels: Iterable[int], palette: Sequence[Iterable[int]]) -> list[Color]:
    """Choose a colour for each object: that of its class for the first one, then shades of it.

    Objects of the only class have different hues.
    """
    if len(palette) == 1:
        return [color_of(palette if n == 0 else (), n) for n, _ in enumerate(labels)]
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
    """Choose black or white text for a background colour."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)


def _rgb(hue: float, lightness: float, saturation: float) -> Color:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)
