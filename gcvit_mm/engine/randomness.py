"""Random numbers that depend only on the position in a run."""

import random

import numpy as np
import torch


def seed_generators(*key: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch.

    Args:
        key: Integers to derive the seeds from; different keys give unrelated random numbers.
    """
    # PyTorch uses 64 bits of a seed, Python and NumPy any number of words.
    words = np.random.SeedSequence([part % 2**64 for part in key]).generate_state(6)
    random.seed(int.from_bytes(words[:2].tobytes(), 'little'))
    np.random.seed(words[2:4])
    torch.manual_seed(int.from_bytes(words[4:].tobytes(), 'little') >> 1)
