"""DINO weights from elsewhere for onedl-mmdetection 3.5.1, which has a wider layer than all others.

It encodes each coordinate of a query with 256 frequencies, other versions with 128 of them, so that
``decoder.ref_point_head.layers.0.weight`` has 1024 columns instead of 512. With zeros for the other
frequencies, narrow weights compute what they did.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MODULE = 'mmdet.models.layers.transformer.dino_layers'
_LAYER = 'ref_point_head.layers.0.weight'


def widened(state: Mapping[str, 'Tensor'], target: Mapping[str, 'Tensor']) -> dict[str, 'Tensor']:
    """The tensors of a state dict that are too narrow for the model, in its width."""
    return {
        name: _widen(state[name])
        for name, own in target.items()
        if name.endswith(_LAYER) and name in state
        if state[name].shape == (own.shape[0], own.shape[1] // 2)
    }


def _widen(weight: 'Tensor') -> 'Tensor':
    """Move the columns of each frequency, a sine and a cosine, to every second place."""
    pairs = weight.new_zeros(len(weight), weight.shape[1] // 2, 2, 2)
    pairs[:, :, 0] = weight.unflatten(1, (-1, 2))
    return pairs.flatten(1)


def widen_on_loading() -> None:
    """Make decoders of DINO take weights of other versions."""
    decoder: Any = import_module(MODULE).DinoTransformerDecoder
    load = decoder._load_from_state_dict

    def load_widened(self: Any, state: dict[str, 'Tensor'], prefix: str, *others: Any) -> None:
        own = {prefix + name: tensor for name, tensor in self.state_dict().items()}
        state.update(widened(state, own))
        load(self, state, prefix, *others)

    decoder._load_from_state_dict = load_widened
