"""Check this environment, and suggest fixes for what is broken."""

# Only the standard library is imported here. Each section of checks runs in its own process, which
# imports packages that may crash it.
import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import _package  # noqa: F401

from gcvit_mm.compat.environment import ONEDL, installed, release
from gcvit_mm.doctor import (
    ABSENT,
    DISTRIBUTIONS,
    ERROR,
    OK,
    SECTIONS,
    WARNING,
    Finding,
    Skipped,
    need,
    one_line,
    pins_of,
    version_of,
)

SECONDS = 300
"""Time limit of a section; the first kernel on a new GPU may take minutes."""
MARKS = {OK: ('ok', 32), ABSENT: ('-', 2), WARNING: ('!', 33), ERROR: ('X', 31)}
"""Mark of each state in the table, and the ANSI code of its colour."""


def main() -> None:
    epilog = 'Exit status: 1 if something required is broken, otherwise 0.'
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog)
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument('--section', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        report_section(args.section)
        return
    with ThreadPoolExecutor(max_workers=3) as pool:
        sections = dict(zip(SECTIONS, pool.map(examine, SECTIONS), strict=True))
    findings = [(section, finding) for section, lines in sections.items() for finding in lines]
    failed = any(finding.state == ERROR for _, finding in findings)
    if args.json:
        lines = [{'section': section, 'name': '', **f._asdict()} for section, f in findings]
        print(json.dumps({'ok': not failed, 'findings': lines}, indent=1))
    else:
        print_table(sections)
        print_problems([finding for _, finding in findings])
    sys.exit(failed)


def examine(section: str) -> list[Finding]:
    """Run the checks of a section in a process, and report how it ended if it ended early."""
    command = [sys.executable, __file__, '--section', section]
    try:
        run = subprocess.run(command, capture_output=True, timeout=SECONDS)
        status = run.returncode
        ended = f'status {status}' if status >= 0 else signal.Signals(-status).name
    except subprocess.TimeoutExpired as error:
        run, ended = error, f'no answer in {SECONDS} s'
    checks = [json.loads(line) for line in (run.stdout or b'').splitlines()]
    findings = [Finding(*finding) for check in checks for finding in check]
    crashed, *rest = [title for title, *_ in SECTIONS[section][len(checks) :]] or ['']
    if crashed:
        last = (run.stderr or b'').decode(errors='replace').strip().splitlines()[-1:]
        problem = f'Python ended during the check of {crashed} ({": ".join([ended, *last])}).'
        findings.append(broken(crashed, problem))
    return findings + [Finding('skipped: Python had ended', ABSENT, name=name) for name in rest]


def report_section(section: str) -> None:
    """Print the findings of each check as a line of JSON."""
    channel = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # some packages print during their import
    for check in SECTIONS[section]:
        print(json.dumps(list(attempt(*check))), file=channel, flush=True)


def attempt(title: str, modules: tuple[str, ...], check: Callable) -> Iterator[Finding]:
    """Run a check with the modules that it needs."""
    try:
        findings = check(*need(*modules))
        for finding in [findings] if isinstance(findings, (str, Finding)) else findings:
            finding = Finding(finding) if isinstance(finding, str) else finding
            if finding.state != OK and not finding.fix:
                finding = finding._replace(fix=fix_of(title, finding.problem or finding.found))
            yield finding._replace(name=finding.name or title)
    except Skipped as error:
        yield Finding(f'skipped: needs {error}', ABSENT, name=title)
    except (Exception, SystemExit) as error:  # a broken package may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == title:
            fix = fix_of(title, 'not installed')
            yield Finding('not installed', ERROR, f'{title} is not installed.', fix, title)
        else:
            yield broken(title, f'{title} does not work: {one_line(error)}')


def broken(title: str, problem: str) -> Finding:
    found = ' '.join([*pins_of(title), '(broken)'])
    return Finding(found, ERROR, problem, fix_of(title, problem), title)


def fix_of(title: str, reason: str) -> str:
    """Look up the fix of a known failure, or ''."""
    old = release(version_of('torch') or '9.9') < (2, 3)
    again, headless = 'pip install --force-reinstall --no-deps', 'opencv-python-headless'
    opencv = [f'{again} {headless}=={pin.partition("==")[2]}' for pin in pins_of('cv2')]
    missing = re.search(r"No module named '(\w+)|^(\w+) not installed", f'{title} {reason}')
    module = (missing[1] or missing[2]) if missing else ''
    family = -1 if installed(ONEDL) else 0
    # mmcv without operations replaces one compiled for another torch; gcvit_mm provides them.
    mmcv = version_of('mmcv') or version_of('mmcv-lite')
    lite = f'pip uninstall -y mmcv\npip install mmcv-lite=={mmcv}'
    if onedl := version_of('onedl-mmcv'):
        lite = f'MMCV_WITH_OPS=0 {again} --no-cache-dir onedl-mmcv=={onedl}'
    driver = 'install a driver for the CUDA of this torch, or a torch for an older CUDA: '
    fixes = {
        r'\bNumPy 1\.x|Numpy is not available|_ARRAY_API|numpy\.dtype size': (
            "pip install 'numpy<2'" if old else 'pip install --force-reinstall numpy'
        ),
        r'^zoo ': f'{again} gcvit_mm',
        r'pkg_resources': "pip install 'setuptools<81'",
        r'no kernel image': 'install a torch with code for this GPU: https://pytorch.org',
        r'not currently implemented for the MPS': 'export PYTORCH_ENABLE_MPS_FALLBACK=1',
        r'not find the GPU.*not compiled with CUDA': install_torch('https://pypi.org/simple'),
        r'not find the GPU': f'{driver}https://pytorch.org/get-started',
        r'MMCV==\S+ is used but incompatible.*install mmcv>=(\S+), <(\S+?)\.?$': (
            r"pip uninstall -y mmcv mmcv-lite\npip install 'mmcv-lite>=\1,<\2'"
        ),
        r'^mmcv\.ops .*(work|during)|mmcv.*_ext\b.*(undefined symbol|shared object)': lite,
        r"^torchvision .*(work|during|install)|No module named 'torchvision": install_torch(),
        r"^cv2 not|No module named 'cv2": f"pip install '{headless}{'<4.12' * old}'",
        r"^\w+ not installed|No module named '\w": (
            f'pip install {DISTRIBUTIONS.get(module, (module,))[family]}'
        ),
        r'cv2(?! comes)|\blib(GL|g?thread|glib|SM|X)\S*\.so': ''.join(opencv[:1]),
    }
    matches = ((re.search(pattern, f'{title} {reason}'), fix) for pattern, fix in fixes.items())
    return next((match.expand(fix) for match, fix in matches if match), '')


def install_torch(index: str = '') -> str:
    """Return the command that installs this release of torch and a matching torchvision.

    Each release of torch needs its own torchvision, 2.1 needs 0.16 for example, until torchvision
    0.29, which uses the stable ABI and runs on torch 2.14 and later.
    """
    version, force = version_of('torch'), '--force-reinstall ' if index else ''
    major, minor = release(version)
    torchvision = '>=0.29' if (major, minor) >= (2, 14) else f'==0.{minor + 15}.*'
    if '+' in version and not index:
        index = f'https://download.pytorch.org/whl/{version.partition("+")[2]}'
    pins = f"'torch=={major}.{minor}.*' 'torchvision{torchvision}'"
    return f'pip install {force}{pins}' + (f' --index-url {index}' if index else '')


def print_table(sections: dict[str, list[Finding]]) -> None:
    names = [finding.name for findings in sections.values() for finding in findings]
    widths = [max(map(len, column)) for column in (sections, names)]
    colours = sys.stdout.isatty() and 'NO_COLOR' not in os.environ
    for section, findings in sections.items():
        for finding in findings:
            mark, colour = MARKS[finding.state]
            mark = f'\033[{colour}m{mark:<2}\033[0m' if colours else f'{mark:<2}'
            hint = f': {finding.fix}' if finding.state == ABSENT and finding.fix else ''
            heading = f'{section if finding is findings[0] else "":<{widths[0]}}'
            print(f'{heading}  {finding.name:<{widths[1]}}  {mark}  {finding.found}{hint}')


def print_problems(findings: list[Finding]) -> None:
    """Print the problems, grouped by their fix."""
    for state in (ERROR, WARNING):
        by_fix: dict[str, list[str]] = {}
        for finding in findings:
            if finding.state == state:
                by_fix.setdefault(finding.fix, []).append(f'{state}: {finding.problem}')
        for fix, problems in by_fix.items():
            print('', *problems, *(f'  {line}' for line in fix.splitlines()), sep='\n')
    counts = {state: sum(f.state == state for f in findings) for state in (ERROR, WARNING)}
    print('\n' + ', '.join(f'{n} {state}{"s" * (n != 1)}' for state, n in counts.items()))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
