"""How threads share the cores with other processes."""

import os

SPINS = '3000'
"""Of a waiting thread, before it sleeps: enough for a training that is alone on the machine."""


def share_cores() -> None:
    """Let OpenMP's threads sleep soon where they wait; to be called before PyTorch is imported.

    Beside other processes, threads that wait awake keep those from running that they wait for.
    What the environment says stays.
    """
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', SPINS)
