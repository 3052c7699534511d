"""The weights and inputs behind ``tests/golden``, and the official files made of them."""

import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / 'golden'
KEYS = json.loads((GOLDEN / 'official_keys.json').read_text())
CASES = {
    path.stem: json.loads(path.read_text())
    for path in sorted(GOLDEN.glob('*.json'))
    if path.stem != 'official_keys'
}


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of an official tensor, from its name and shape alone."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    leaf = name.rsplit('.', 1)[-1]
    if leaf == 'relative_position_bias_table':
        value = 0.5 * noise
    elif leaf in ('gamma1', 'gamma2'):
        value = 0.5 + 0.1 * noise
    elif leaf == 'bias':
        value = 0.05 * noise
    elif len(shape) == 1:
        value = 1.0 + 0.1 * noise
    else:
        value = noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32))


def image(tag: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The input of a case, float32 (B, 3, H, W)."""
    rng = np.random.RandomState(zlib.crc32(tag.encode()))
    b, c, h, w = shape
    y, x = np.mgrid[0:h, 0:w] / 32.0
    phase = rng.uniform(0, 6.28, size=(b, c, 1, 1))
    value = np.sin(x + phase) + np.cos(1.7 * y - phase) + 0.3 * rng.standard_normal(shape)
    return torch.from_numpy(value.astype(np.float32))


def official_state(variant: str) -> dict[str, torch.Tensor]:
    """An official classification state dict."""
    return {name: tensor(name, tuple(shape)) for name, shape in KEYS[variant].items()}


def write_official(path: Path, variant: str) -> str:
    """Write an official file as they are on the web: a timm trainer's state."""
    content = {
        'epoch': 300,
        'arch': f'gc_vit_{variant}',
        'state_dict': official_state(variant),
        'args': argparse.Namespace(model=f'gc_vit_{variant}', lr=0.005, opt_betas=None),
        'metric': 0.1,
    }
    torch.save(content, path)
    return str(path)


def differences(tag: str, outputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest absolute difference per array of a case."""
    case = np.load(GOLDEN / f'{tag}.npz')
    found = {}
    for name, output in outputs.items():
        assert tuple(output.shape) == tuple(case[f'{name}.shape']), name
        values = output.detach().numpy()
        if f'{name}.index' in case:
            found[name] = np.abs(
                values.ravel()[case[f'{name}.index']] - case[f'{name}.value']
            ).max()
        else:
            found[name] = np.abs(values - case[name]).max()
    return found
