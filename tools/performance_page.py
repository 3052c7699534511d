"""Write docs/performance.md from the measurements in docs/performance."""

import argparse
import json
from pathlib import Path

import _package  # noqa: F401

from gcvit_mm.cli import run
from gcvit_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGE, FOLDER = ROOT / 'docs' / 'performance.md', ROOT / 'docs' / 'performance'

HEAD = """# Performance

Written by `tools/performance_page.py` from measurements of `tools/benchmark.py` in
`docs/performance/`. The models of a table took turns in one process after a warm-up, with random
weights and images. Times are medians and quartiles. Other backbones are built by their packages.

- *peak MB*: peak memory of a step, including the model, in 10^6 bytes.
- *GFLOP*: FLOPs of matrix products and convolutions, including the two products of attention.
- *GB*: bytes that these operations read and write, without attention scores: the minimum traffic if
  all other operations are fused into them.
- *time / floor*: time divided by the minimum time of the device for the FLOPs or for the bytes,
  whichever is longer, at the rates of a large matrix product and a large copy.
- *time / 1* and so on: time divided by that of the model with this number.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='only fail if the page is outdated')
    check = parser.parse_args().check
    new = page()
    if PAGE.is_file() and PAGE.read_text() == new:
        return
    if check:
        raise UserError('docs/performance.md is outdated: run tools/performance_page.py')
    PAGE.write_text(new)


def page() -> str:
    parts, device = [HEAD], None
    for path in sorted(FOLDER.glob('*.json')):
        content = json.loads(path.read_text())
        if content['machine']['device'] != device:
            device = content['machine']['device']
            parts += [f'## {device}', '']
        parts.append(section(path.name, content))
    return '\n'.join(parts)


def section(name: str, content: dict) -> str:
    """The measurements of a command: a table for each setting."""
    from gcvit_mm.benchmark.table import heading, table

    machine = content['machine']
    lines = [
        f'{machine["threads"]} CPU threads, torch {machine["torch"]}, Python '
        f'{machine["python"]}; commit {machine["commit"]}, {machine["date"]}; '
        f'[`{name}`](performance/{name}).',
        '',
        f'    python tools/benchmark.py {content["command"]}',
        '',
    ]
    for each in content['runs']:
        titles, *rows = table(each)
        lines += [
            f'### {heading(each).capitalize()}',
            '',
            markdown(titles),
            f'|---|---|{"---:|" * (len(titles) - 2)}',
            *map(markdown, rows),
            '',
            f'The device reached {each["peaks"]["flops"] / 1e9:.0f} GFLOP/s and '
            f'{each["peaks"]["bytes"] / 1e9:.1f} GB/s.',
            '',
        ]
    return '\n'.join(lines)


def markdown(cells: list[str]) -> str:
    return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    run(main)
