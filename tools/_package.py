"""Lets the tools find the package that they belong to, in any environment: import this first."""

import sys
from importlib.util import find_spec
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - whatever python3 is
    sys.exit('error: Python 3.11 or newer is needed; where it is set up: source .venv/bin/activate')
if find_spec('gcvit_mm') is None:
    # What is missing besides is then said by gcvit_mm.cli, which needs nothing else.
    here = Path(__file__).resolve()
    folders = (here.parents[1], here.parents[3])  # of a checkout, and of an installed package
    sys.path.append(str(next(f for f in folders if (f / 'gcvit_mm' / 'cli.py').is_file())))
