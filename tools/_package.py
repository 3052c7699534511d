"""Makes the package importable for the tools, which import this module first."""

import sys
from importlib.util import find_spec
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - any python3 may run a tool
    sys.exit('error: Python 3.11 or later is needed: activate it, by source .venv/bin/activate')
if find_spec('gcvit_mm') is None:
    # gcvit_mm.cli needs no other package, and reports those that are missing.
    here = Path(__file__).resolve()
    folders = (here.parents[1], here.parents[3])  # in a checkout and in an installed package
    sys.path.append(str(next(f for f in folders if (f / 'gcvit_mm' / 'cli.py').is_file())))
