"""The modules that FSDP shards separately, for training and for ``tools/scaling.py``."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from .choices import FSDP_UNITS


def fsdp_units(model: nn.Module, classes: Sequence[str] = FSDP_UNITS) -> Iterator[nn.Module]:
    """Yield the FSDP units of a model, which are not nested and do not include the model itself.

    Args:
        model: The model.
        classes: Patterns of the names of the units' classes. FSDP gathers the parameters of a unit
            when the unit is called, so its submodules must not be called from outside.
    """
    for child in model.children():
        if any(fnmatchcase(type(child).__name__, name) for name in classes):
            yield child
        else:
            yield from fsdp_units(child, classes)
