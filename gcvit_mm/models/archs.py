"""The published variants of GC ViT."""

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
KEYS = set(_TINY)
"""What describes a variant."""
