"""One command in front of the tools: ``gcvit-mm train CONFIG`` is ``tools/train.py CONFIG``."""

# Only the standard library is imported: `gcvit-mm doctor` is to say what an environment lacks.
import ast
import difflib
import os
import subprocess
import sys
from pathlib import Path

from .zoo import TOOLS

REPOSITORY_ONLY = ('performance_page', 'zoo_table')
"""What only writes pages of the repository."""
SHELL = {
    'slurm_train': 'Train by SLURM: PARTITION JOB_NAME CONFIG GPUS [arguments of train]',
    'slurm_test': 'Evaluate by SLURM: PARTITION JOB_NAME CONFIG CHECKPOINT GPUS [arguments]',
}


def main() -> None:
    """Run the tool that the command line names, in place of this process."""
    tools = find_tools()
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help', 'help'):
        print_commands(tools)
        return
    name = sys.argv[1].replace('-', '_')
    if name not in tools:
        near = difflib.get_close_matches(sys.argv[1], [as_typed(tool) for tool in tools], n=1)
        hint = f'did you mean {near[0]}?' if near else 'gcvit-mm --help lists them'
        sys.exit(f'error: gcvit-mm has no command {sys.argv[1]}: {hint}')
    # The shell scripts call python: this one, also where it is not on the path.
    here = os.path.dirname(sys.executable)
    os.environ['PATH'] = os.pathsep.join([here, os.environ.get('PATH', os.defpath)])
    command = ['bash' if name in SHELL else sys.executable, str(tools[name]), *sys.argv[2:]]
    if os.name == 'nt':  # there, exec would give the terminal back at once
        sys.exit(subprocess.run(command, check=False).returncode)
    os.execvp(command[0], command)


def find_tools() -> dict[str, Path]:
    """The tools by name."""
    scripts = {path.stem: path for path in sorted(TOOLS.glob('[!_]*.py'))}
    for name in REPOSITORY_ONLY:
        scripts.pop(name, None)
    return scripts | {name: TOOLS / f'{name}.sh' for name in SHELL}


def print_commands(tools: dict[str, Path]) -> None:
    print('usage: gcvit-mm COMMAND [arguments]; gcvit-mm COMMAND --help says more\n')
    width = max(map(len, tools)) + 2
    for name, path in tools.items():
        summary = SHELL.get(name) or (ast.get_docstring(ast.parse(path.read_text())) or '')
        print(f'  {as_typed(name):<{width}}{summary.splitlines()[0]}')


def as_typed(name: str) -> str:
    return name.replace('_', '-')


if __name__ == '__main__':
    main()
