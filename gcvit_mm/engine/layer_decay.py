"""Layer-wise learning-rate decay for models of mmdet, mmsegmentation and mmpretrain."""

from collections.abc import Callable

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..errors import UserError
from .param_groups import GroupedOptimWrapperConstructor

Depth = Callable[[str, str], tuple[int, int]]

_OPTIONS = (
    'layer_decay_rate',
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'flat_decay_mult',
    'bypass_duplicate',
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(GroupedOptimWrapperConstructor):
    """Builds an optimizer with a learning rate for each layer of the backbone.

    The learning rate of a layer is ``layer_decay_rate`` times that of the next layer; heads, necks
    and all other modules have the full rate. The backbone is the module named ``backbone``, of any
    class with mmpretrain's method ``get_layer_depth``: ``GCViT``, ``mmpretrain.SwinTransformer``,
    ``mmpretrain.VisionTransformer`` and others.

    The constructor logs one line per layer.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper; its ``optimizer`` must have ``lr``.
        paramwise_cfg: ``layer_decay_rate`` in (0, 1], and any option of mmengine's
            ``DefaultOptimWrapperConstructor``; ``lr_mult`` multiplies the rate of the layer.

    Raises:
        UserError: An option is unknown or out of range, or the model has no such backbone.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.9, norm_decay_mult=0.0),
        ... )
    """

    def _validate_cfg(self) -> None:
        try:
            super()._validate_cfg()
        except (TypeError, ValueError) as error:
            raise UserError(f'optim_wrapper.paramwise_cfg: {error}') from error
        unknown = set(self.paramwise_cfg) - set(_OPTIONS)
        if unknown:
            raise UserError(
                f'optim_wrapper.paramwise_cfg has no option {", ".join(sorted(unknown))}: choose '
                f'from {", ".join(_OPTIONS)}'
            )
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise UserError(
                f'optim_wrapper.paramwise_cfg.layer_decay_rate is {rate}: set a number above 0 and '
                'at most 1, such as 0.9'
            )
        if self.base_lr is None:
            raise UserError('optim_wrapper.optimizer.lr is not set: layer-wise decay needs it')

    def arrange(
        self, singles: list[dict], names: dict[nn.Parameter, str], model: nn.Module
    ) -> list[str]:
        """Give each parameter the learning rate of its layer."""
        depths = _find_depths(model)
        layers: dict[str, list[dict]] = {}
        for single in singles:
            layer, scale = self._place(names[single['params'][0]], depths)
            single.setdefault('lr', self.base_lr)
            single['lr'] *= scale
            layers.setdefault(layer, []).append(single)
        lines = [f'layer decay {self.paramwise_cfg["layer_decay_rate"]}']
        for layer, own in layers.items():
            rates = ', '.join(f'{lr:.3g}' for lr in sorted({single['lr'] for single in own}))
            no_decay = sum(single.get('weight_decay') == 0 for single in own)
            lines.append(
                f'{layer}: learning rate {rates}; {len(own)} tensors, {no_decay} of them '
                'without weight decay'
            )
        return lines

    def _place(self, name: str, depths: dict[str, Depth]) -> tuple[str, float]:
        """The layer of a parameter, as shown in the log, and the factor of its learning rate."""
        for prefix, get_layer_depth in depths.items():
            layer, count = get_layer_depth(name, prefix)
            if layer < count - 1:
                scale = self.paramwise_cfg['layer_decay_rate'] ** (count - 1 - layer)
                return f'{prefix[:-1]} layer {layer}', scale
        return 'all else', 1.0


def _find_depths(model: nn.Module) -> dict[str, Depth]:
    """The ``get_layer_depth`` of each module named ``backbone``, by the prefix of its names."""
    backbones = {
        f'{name}.': module
        for name, module in model.named_modules()
        if name.rpartition('.')[2] == 'backbone'
    }
    depths = {
        prefix: module.get_layer_depth
        for prefix, module in backbones.items()
        if hasattr(module, 'get_layer_depth')
    }
    if not depths:
        types = ' and '.join(sorted({type(module).__name__ for module in backbones.values()}))
        raise UserError(
            f'layer decay: {types or "a module named backbone"} of {type(model).__name__} has no '
            "method get_layer_depth: use GCViT or one of mmpretrain's backbones that has it"
        )
    return depths
