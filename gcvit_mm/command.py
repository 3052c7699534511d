"""The command ``gcvit-mm``, which runs the tools: ``gcvit-mm train`` is ``tools/train.py``."""

# Only the standard library is imported, because `gcvit-mm doctor` must work in broken environments.
import ast
import difflib
import os
import subprocess
import sys
from pathlib import Path

from .zoo import TOOLS

REPOSITORY_ONLY = ('performance_page', 'zoo_table')
"""Tools that only write pages of the repository."""
SHELL = {
    'slurm_train': 'Train by SLURM: PARTITION JOB_NAME CONFIG GPUS [arguments of train]',
    'slurm_test': 'Evaluate by SLURM: PARTITION JOB_NAME CONFIG CHECKPOINT GPUS [arguments]',
}


def main() -> None:
    """Replace this process by the tool that the command line names."""
    tools = find_tools()
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help', 'help'):
        print_commands(tools)
        return
    name = sys.argv[1].replace('-', '_')
    if name not in tools:
        near = difflib.get_close_matches(sys.argv[1], [as_typed(tool) for tool in tools], n=1)
        hint = f'did you mean {near[0]}?' if near else 'run gcvit-mm --help to list the commands'
        sys.exit(f'error: gcvit-mm has no command {sys.argv[1]}: {hint}')
    # Shell scripts call `python`, which must be this one even if it is not on the path.
    here = os.path.dirname(sys.executable)
    os.environ['PATH'] = os.pathsep.join([here, os.environ.get('PATH', os.defpath)])
    command = ['bash' if name in SHELL else sys.executable, str(tools[name]), *sys.argv[2:]]
    if os.name == 'nt':  # exec on Windows would return to the terminal at once
        sys.exit(subprocess.run(command, check=False).returncode)
    os.execvp(command[0], command)


def find_tools() -> dict[str, Path]:
    """The tools by name."""
    scripts = {path.stem: path for path in sorted(TOOLS.glob('[!_]*.py'))}
    for name in REPOSITORY_ONLY:
        scripts.pop(name, None)
    return scripts | {name: TOOLS / f'{name}.sh' for name in SHELL}


def print_commands(tools: dict[str, Path]) -> None:
    print('usage: gcvit-mm COMMAND [arguments]; gcvit-mm COMMAND --help explains the arguments\n')
    width = max(map(len, tools)) + 2
    for name, path in tools.items():
        summary = SHELL.get(name) or (ast.get_docstring(ast.parse(path.read_text())) or '')
        print(f'  {as_typed(name):<{width}}{summary.splitlines()[0]}')


def as_typed(name: str) -> str:
    return name.replace('_', '-')


if __name__ == '__main__':
    main()
