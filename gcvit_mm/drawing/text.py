"""Text of any script, in the installed fonts that cover it."""

import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from mmengine.logging import print_log
from PIL import Image, ImageDraw, ImageFont

from .palette import Color, contrast

FIRST = Path(mpl.get_data_path(), 'fonts/ttf/DejaVuSans.ttf')
"""Matplotlib brings it; it covers Latin, Greek, Cyrillic, Hebrew and Arabic."""
STYLES = ('bold', 'black', 'heavy', 'italic', 'light', 'mono', 'oblique', 'serif', 'thin')
PLACEHOLDERS = ('lastresort', 'blank')
"""Fonts that have a box, or nothing, for every character."""
LONGEST = 32
"""Characters of a name; what is longer is cut off."""
JOINERS = '\u200c\u200d'
"""Invisible, but Persian, Hindi and others are misspelt without them."""


def printable(text: str) -> str:
    """Text with control characters escaped."""
    return ''.join(one if one.isprintable() or one in JOINERS else _escaped(one) for one in text)


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class as fonts can show it: escaped, after its number, if none covers it."""
    return _legible(str(classes[label]), label) if label < len(classes) else str(label)


@lru_cache(maxsize=4096)
def _legible(name: str, label: int) -> str:
    text = printable(name if len(name) <= LONGEST else f'{name[: LONGEST - 1]}…')
    if all(map(font_of, text)):
        return text
    _warn()
    return f'{label} {_escaped(text)}'


@cache
def font_of(character: str) -> Path | None:
    """The first installed font that has a glyph for a character, None without one."""
    return next((font for font in _fonts() if ord(character) in _characters(font)), None)


class Line:
    """A line of text, measured.

    Args:
        text: What ``printable`` or ``class_name`` gave.
        size: Height of the letters, in pixels.

    Attributes:
        width: In pixels, as ``height``, with a margin on all sides.
        height: See ``width``.
    """

    def __init__(self, text: str, size: int) -> None:
        self._runs = [
            (_load(font or FIRST, size), ''.join(run)) for font, run in groupby(text, font_of)
        ]
        self._margin = max(1, size // 6)
        metrics = [font.getmetrics() for font, _ in self._runs]
        self._ascent = max((ascent for ascent, _ in metrics), default=0)
        descent = max((descent for _, descent in metrics), default=0)
        self.height = self._ascent + descent + 2 * self._margin
        self.width = round(sum(font.getlength(run) for font, run in self._runs)) + 2 * self._margin

    def draw(self, picture: Image.Image, x: int, y: int, color: Color) -> None:
        """Draw the line on a background of a colour; x and y are its upper left corner."""
        canvas = ImageDraw.Draw(picture)
        canvas.rectangle((x, y, x + self.width - 1, y + self.height - 1), fill=color)
        start, baseline = float(x + self._margin), y + self._margin + self._ascent
        for font, run in self._runs:
            canvas.text((start, baseline), run, contrast(color), font, anchor='ls')
            start += font.getlength(run)


@cache
def _fonts() -> list[Path]:
    """The installed fonts; upright ones of normal weight, without serifs, come first."""
    found = [Path(file) for file in findSystemFonts()]
    named = sorted((any(style in font.stem.lower() for style in STYLES), font) for font in found)
    return [FIRST, *(font for _, font in named)]


@cache
def _characters(font: Path) -> frozenset[int]:
    if any(name in font.stem.lower() for name in PLACEHOLDERS):
        return frozenset()
    try:
        face = FT2Font(str(font))
    except (OSError, RuntimeError):  # damaged, or of a format that FreeType does not read
        return frozenset()
    # Bitmaps, as of coloured emoji, come in a few sizes only.
    return frozenset(face.get_charmap() if face.scalable else ())


@lru_cache(maxsize=64)
def _load(font: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, size)


@cache
def _warn() -> None:
    print_log(
        'no installed font covers the names of all classes: captions show the number and the '
        'escaped name of those; install a font of their script, for example Noto Sans CJK',
        logger='current',
        level=logging.WARNING,
    )


def _escaped(text: str) -> str:
    return text.encode('unicode_escape').decode()
