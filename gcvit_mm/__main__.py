"""Run another project's script with gcvit_mm imported first: ``python -m gcvit_mm SCRIPT ARGS``.

mmdet's own ``tools/test.py`` for example imports ``mmcv.ops`` before it reads the config, whose
``custom_imports`` are too late then where mmcv has no compiled extension.
"""

import os
import runpy
import sys

from .cli import run
from .errors import UserError


def main() -> None:
    """Run the script that the command line names, as ``python SCRIPT ARGS`` would."""
    if len(sys.argv) < 2:
        raise UserError('which script? python -m gcvit_mm SCRIPT [ARGS ...]')
    script = sys.argv[1]
    if not os.path.isfile(script):
        raise UserError(f'script {script} does not exist: python -m gcvit_mm SCRIPT [ARGS ...]')
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    run(main)
