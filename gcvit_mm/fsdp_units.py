"""What FSDP gathers piece by piece: one definition for trainings and for ``tools/scaling.py``."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from .choices import FSDP_UNITS


def fsdp_units(model: nn.Module, classes: Sequence[str] = FSDP_UNITS) -> Iterator[nn.Module]:
    """The modules of a model that FSDP shards each by itself; none is within another.

    Args:
        model: The model, which is no unit itself.
        classes: Names of the units' classes, with the wildcards of file names. Such modules must
            be called as a whole, because a call is what gathers their parameters.
    """
    for child in model.children():
        if any(fnmatchcase(type(child).__name__, name) for name in classes):
            yield child
        else:
            yield from fsdp_units(child, classes)
