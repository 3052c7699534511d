"""Runs tools in processes that have the packages imported already, which takes ten seconds each.

``multiprocessing``'s fork server imports this module once, and forks a process for each tool. Some
tests start tools as a shell does (``command_line.call`` with streams), and so do all documents.
"""

import functools
import gc
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

TESTS = Path(__file__).parent

if 'multiprocessing.forkserver' in sys.orig_argv[-1]:
    from gcvit_mm import cli

    cli._share_cores()
    import mmengine  # noqa: F401

    cli._hide_foreign_lines()  # before the packages look up what it replaces
    import mmseg.apis  # noqa: F401

    import gcvit_mm.register  # noqa: F401

    gc.freeze()  # data sets collect garbage, half a second each time with all these objects

_CONTEXT = multiprocessing.get_context('forkserver')


@functools.cache
def _start_server() -> None:
    _CONTEXT.set_forkserver_preload(['preloaded'])
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop('PYTHONPATH')
        if before is not None:
            os.environ['PYTHONPATH'] = before


def start_tool(
    command: list[str], cwd: Path, environment: dict[str, str], streams: list[str]
) -> BaseProcess:
    """Start a Python script whose output and errors go to these files."""
    _start_server()
    process = _CONTEXT.Process(target=_run, args=(command, cwd, environment, streams))
    process.start()
    return process


def run_tool(command: list[str], cwd: Path, environment: dict[str, str]) -> CompletedProcess:
    """Run a Python script to its end, as ``subprocess.run`` with captured output."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # Descriptors cannot be passed, but files can be opened by their names in the other process.
        names = [f'/proc/{os.getpid()}/fd/{file.fileno()}' for file in (out, err)]
        process = start_tool(command, cwd, environment, names)
        process.join()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return CompletedProcess(command, process.exitcode, *texts)


def _run(command: list[str], cwd: Path, environment: dict[str, str], streams: list[str]) -> None:
    for number, name in enumerate(streams, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).resolve().parent))
    runpy.run_path(command[0], run_name='__main__')
