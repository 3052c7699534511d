"""Run a script of another project after importing gcvit_mm: ``python -m gcvit_mm SCRIPT ARGS``.

If mmcv has no compiled extension, gcvit_mm must be imported before ``mmcv.ops``. Scripts such as
mmdet's ``tools/test.py`` import it before they read the ``custom_imports`` of a config.
"""

import os
import runpy
import sys

from .cli import run
from .errors import UserError


def main() -> None:
    """Run the script on the command line as ``python SCRIPT ARGS`` would."""
    if len(sys.argv) < 2:
        raise UserError('the script is missing: run python -m gcvit_mm SCRIPT [ARGS ...]')
    script = sys.argv[1]
    if not os.path.isfile(script):
        raise UserError(f'script {script} does not exist: run python -m gcvit_mm SCRIPT [ARGS ...]')
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    run(main)
