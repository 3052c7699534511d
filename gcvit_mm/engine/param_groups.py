"""Optimizers that take few and large steps."""

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
    """mmengine's constructor of optimizers, with one group for all parameters of equal settings.

    mmengine's makes a group of every parameter, and optimizers take their steps group by group:
    hundreds of small ones, where fused and multi-tensor steps could take two.

    Args:
        optim_wrapper_cfg: As for mmengine's.
        paramwise_cfg: As for mmengine's, with the same meaning.

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
        """Append a model's groups of parameters to ``params``; mmengine calls it."""
        if prefix:  # one of the calls by which mmengine's method goes through the model
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
        """Change the settings of parameters, each in a group of its own, before they are joined.

        Returns:
            Lines for the log: here, the settings and how many tensors have them.
        """
        lines = []
        for group in _merge(singles):
            settings = [f'{key} {value:g}' for key, value in group.items() if key != 'params']
            lines.append(f'{len(group["params"])} tensors: {", ".join(settings) or "as it is"}')
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
    """Join groups of equal settings: an optimizer takes its step group by group."""
    merged: dict[str, dict] = {}
    for single in singles:
        applied = ('params', 'lr_mult', 'decay_mult')
        settings = {key: value for key, value in single.items() if key not in applied}
        group = merged.setdefault(repr(sorted(settings.items())), {'params': [], **settings})
        group['params'] += single['params']
    return list(merged.values())


@contextmanager
def _without_lines_per_parameter() -> Iterator[None]:
    """Keep mmengine from logging each parameter's settings: the groups' are logged."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith('paramwise_options')

    logger = MMLogger.get_current_instance()
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
