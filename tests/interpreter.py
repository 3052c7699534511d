"""The tests of a file of Triton kernels again, in Triton's interpreter, which needs no GPU."""

import os
import subprocess
import sys

import numpy as np
import pytest
from packaging.version import Version


def pass_in_the_interpreter(file: str, *options: str) -> None:
    """Run the tests of a file with the interpreter on, which is before triton is imported."""
    triton = pytest.importorskip('triton')
    if Version(triton.__version__) < Version('3.7') and Version(np.__version__) >= Version('2.5'):
        pytest.skip(
            f'the interpreter of triton {triton.__version__} calls int() for arrays of one element,'
            f' which numpy {np.__version__} refuses; triton 3.7 does not'
        )
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *options, file]
    run = subprocess.run(
        command,
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0 and ' passed' in run.stdout.splitlines()[-1], run.stdout
