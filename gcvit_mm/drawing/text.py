"""Text of any script, drawn with the installed fonts that cover it."""

import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from mmengine.logging import print_log
from PIL import Image, ImageDraw, ImageFont

from ..errors import escaped, printable
from .palette import Color, contrast

FIRST = Path(mpl.get_data_path(), 'fonts/ttf/DejaVuSans.ttf')
"""The preferred font, of matplotlib, which covers Latin, Greek, Cyrillic, Hebrew and Arabic."""
STYLES = ('bold', 'black', 'heavy', 'italic', 'light', 'mono', 'oblique', 'serif', 'thin')
PLACEHOLDERS = ('lastresort', 'blank')
"""Parts of the names of fonts that draw a box, or nothing, for every character."""
LONGEST = 32
"""Maximum length of a name, in characters; longer names are truncated."""


def class_name(classes: Sequence[str], label: int) -> str:
    """Return the name of a class; if no font covers it, its number and the escaped name."""
    return _legible(str(classes[label]), label) if label < len(classes) else str(label)


@lru_cache(maxsize=4096)
def _legible(name: str, label: int) -> str:
    text = printable(name if len(name) <= LONGEST else f'{name[: LONGEST - 1]}…')
    if all(map(font_of, text)):
        return text
    _warn()
    return f'{label} {escaped(text)}'


@cache
def font_of(character: str) -> Path | None:
    """Find the first installed font that has a glyph for a character, or None."""
    return next((font for font in _fonts() if ord(character) in _characters(font)), None)


class Line:
    """A line of text from ``printable`` or ``class_name``, whose width and height have a margin."""

    def __init__(self, text: str, size: int) -> None:
        self._runs = [
            (_load(font or FIRST, size), ''.join(run)) for font, run in groupby(text, font_of)
        ]
        self._margin = max(1, size // 6)
        self._pictures: dict[Color, np.ndarray] = {}
        metrics = [font.getmetrics() for font, _ in self._runs]
        self._ascent = max((ascent for ascent, _ in metrics), default=0)
        descent = max((descent for _, descent in metrics), default=0)
        self.height = self._ascent + descent + 2 * self._margin
        self.width = round(sum(font.getlength(run) for font, run in self._runs)) + 2 * self._margin

    def picture(self, color: Color) -> np.ndarray:
        """Draw the line on a background colour, (height, width, 3) of uint8 in RGB."""
        if color in self._pictures:
            return self._pictures[color]
        picture = Image.new('RGB', (self.width, self.height), color)
        canvas = ImageDraw.Draw(picture)
        start, baseline = float(self._margin), self._margin + self._ascent
        for font, run in self._runs:
            canvas.text((start, baseline), run, contrast(color), font, anchor='ls')
            start += font.getlength(run)
        self._pictures[color] = np.asarray(picture)
        return self._pictures[color]


line_of = lru_cache(maxsize=4096)(Line)
"""The line of a text and a font size; pictures have many equal captions."""


@cache
def _fonts() -> list[Path]:
    """List the installed fonts; upright sans-serif fonts of normal weight come first."""
    fonts = [Path(file) for file in findSystemFonts()]
    ranked = sorted((any(style in font.stem.lower() for style in STYLES), font) for font in fonts)
    return [FIRST, *(font for _, font in ranked)]


@cache
def _characters(font: Path) -> frozenset[int]:
    if any(name in font.stem.lower() for name in PLACEHOLDERS):
        return frozenset()
    try:
        face = FT2Font(str(font))
    except (OSError, RuntimeError):  # damaged, or of a format that FreeType cannot read
        return frozenset()
    # Bitmap fonts, such as coloured emoji, have only a few sizes.
    return frozenset(face.get_charmap() if face.scalable else ())


@lru_cache(maxsize=64)
def _load(font: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, size)


@cache
def _warn() -> None:
    print_log(
        'no installed font covers the names of some classes, captions show their numbers and '
        'escaped names: install a font for their script, for example Noto Sans CJK',
        logger='current',
        level=logging.WARNING,
    )
