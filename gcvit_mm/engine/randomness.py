"""Random numbers that follow from where a training is, and not from what was before."""

import random

import numpy as np
import torch


def seed_generators(*key: int) -> None:
    """Seed Python's, numpy's and PyTorch's generators.

    Args:
        key: What the numbers depend on; keys that differ give unrelated numbers.
    """
    # PyTorch keeps 64 bits, the others take any number of words.
    words = np.random.SeedSequence([part % 2**64 for part in key]).generate_state(6)
    random.seed(int.from_bytes(words[:2].tobytes(), 'little'))
    np.random.seed(words[2:4])
    torch.manual_seed(int.from_bytes(words[4:].tobytes(), 'little') >> 1)
