"""The published variants of GC ViT."""

from collections.abc import Mapping

from ..errors import ArgumentError

_TINY = dict(
    dim=64,
    depths=(3, 4, 19, 5),
    num_heads=(2, 4, 8, 16),
    mlp_ratio=3,
    layer_scale=None,
    drop_path_rate=0.2,
)
_SMALL = dict(
    dim=96,
    depths=(3, 4, 19, 5),
    num_heads=(3, 6, 12, 24),
    mlp_ratio=2,
    layer_scale=1e-5,
    drop_path_rate=0.3,
)
ARCHS = {
    'xxtiny': {**_TINY, 'depths': (2, 2, 6, 2)},
    'xtiny': {**_TINY, 'depths': (3, 4, 6, 5)},
    'tiny': _TINY,
    'tiny2': {**_TINY, 'depths': (3, 4, 29, 5), 'drop_path_rate': 0.25},
    'small': _SMALL,
    'small2': {**_SMALL, 'depths': (3, 4, 23, 5), 'mlp_ratio': 3, 'drop_path_rate': 0.35},
    'base': {**_SMALL, 'dim': 128, 'num_heads': (4, 8, 16, 32), 'drop_path_rate': 0.5},
    'large': {**_SMALL, 'dim': 192, 'num_heads': (6, 12, 24, 48), 'drop_path_rate': 0.5},
}
"""The published variants; ``drop_path_rate`` is the one of their ImageNet training."""


def arch_settings(arch: str | Mapping) -> Mapping:
    """The settings of a variant, given by its name or as they are."""
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ArgumentError(f'arch={arch!r} is unknown: choose one of {list(ARCHS)}')
        return ARCHS[arch]
    if not isinstance(arch, Mapping) or set(arch) != set(_TINY):
        given = sorted(arch) if isinstance(arch, Mapping) else arch
        raise ArgumentError(
            f'arch is one of {list(ARCHS)} or a dict with exactly the keys {sorted(_TINY)}, '
            f'not {given}'
        )
    for key in ('depths', 'num_heads'):
        if len(arch[key]) != 4 or min(arch[key]) < 1:
            raise ArgumentError(f'arch[{key!r}] must hold 4 positive numbers, not {arch[key]}')
    for i, heads in enumerate(arch['num_heads']):
        if arch['dim'] * 2**i % heads:
            raise ArgumentError(f'stage {i} has {arch["dim"] * 2**i} channels for {heads} heads')
    return arch
