"""The page of ``tools/app.py``, in a browser and over HTTP."""

import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, ROOT, fail
from gradio_client import Client, handle_file
from mmengine.registry import MODELS
from PIL import Image

from gcvit_mm import Predictor
from gcvit_mm.app.found import find, picture, rows, summary
from gcvit_mm.app.photo import LARGEST, read_photo
from gcvit_mm.engine.launch import read_config
from gcvit_mm.errors import UserError
from gcvit_mm.inference.model import package_of

pytest_plugins = ['browser']
MAX_UPLOAD = 1
"""In MB."""
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'


@contextmanager
def serving(model: Path, temporary: Path):
    """The page at a free port; it must leave nothing behind and end without a traceback."""
    temporary.mkdir()
    command = [sys.executable, 'tools/app.py', model, '--port', 0, '--max-upload', MAX_UPLOAD]
    with open(temporary.with_suffix('.log'), 'w+') as log:
        server = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**ENVIRONMENT, 'TMPDIR': str(temporary)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            found = [re.match('http://127.0.0.1:[0-9]+', line) for line in iter_address(server)]
            yield found[-1][0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
        log.seek(0)
        said = log.read()
    assert 'Traceback' not in said, said
    assert server.returncode == 130, said
    assert not list(temporary.iterdir())
