"""Optimizers with few, large parameter groups."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..errors import UserError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Builds an optimizer with one group for all parameters of equal settings.

    Optimizers update one group after the other. mmengine's ``DefaultOptimWrapperConstructor`` makes
    a group of each parameter, and so hundreds of small updates where two fused ones are enough.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: Options of ``DefaultOptimWrapperConstructor``.

    Raises:
        UserError: A parameter is in the model more than once, without ``bypass_duplicate``.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Append the parameter groups of a model to ``params``; mmengine calls this method."""
        if prefix:  # mmengine's method calls itself for each submodule
            super().add_params(params, module, prefix, is_dcn_module)
            return
        singles: list[dict] = []
        with _without_lines_per_parameter():
            super().add_params(singles, module)
        names = {parameter: name for name, parameter in module.named_parameters()}
        _refuse_duplicates(singles, names)
        lines = self.arrange(singles, names, module)
        params.extend(_merge(singles))
        print_log('\n    '.join([f'{len(params)} groups of parameters', *lines]), logger='current')

    def arrange(
        self, singles: list[dict], names: dict[nn.Parameter, str], model: nn.Module
    ) -> list[str]:
        """Change the settings of single parameters before those of equal settings are grouped.

        Returns:
            Lines for the log: here, the settings of each group and its number of tensors.
        """
        lines = []
        for group in _merge(singles):
            settings = [f'{key} {value:g}' for key, value in group.items() if key != 'params']
            lines.append(f'{len(group["params"])} tensors: {", ".join(settings) or "defaults"}')
        return lines


def _refuse_duplicates(singles: list[dict], names: dict[nn.Parameter, str]) -> None:
    seen = set()
    for single in singles:
        (parameter,) = single['params']
        if parameter in seen:
            raise UserError(
                f'{names[parameter]} is in the model more than once: set '
                'optim_wrapper.paramwise_cfg.bypass_duplicate=True'
            )
        seen.add(parameter)


def _merge(singles: list[dict]) -> list[dict]:
    """Join groups of equal settings."""
    merged: dict[str, dict] = {}
    for single in singles:
        applied = ('params', 'lr_mult', 'decay_mult')
        settings = {key: value for key, value in single.items() if key not in applied}
        group = merged.setdefault(repr(sorted(settings.items())), {'params': [], **settings})
        group['params'] += single['params']
    return list(merged.values())


@contextmanager
def _without_lines_per_parameter() -> Iterator[None]:
    """Keep mmengine from logging the settings of each parameter; those of groups are logged."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith('paramwise_options')

    logger = MMLogger.get_current_instance()
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
