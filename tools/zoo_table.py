"""Write the table of models in ``docs/models.md`` from ``configs/metafile.yml``."""

import argparse
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import _package  # noqa: F401

from gcvit_mm.cli import run
from gcvit_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
START, END = '<!-- zoo: written by tools/zoo_table.py -->', '<!-- /zoo -->'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='only fail if the table is outdated')
    check = parser.parse_args().check
    page = ROOT / 'docs' / 'models.md'
    old = page.read_text()
    new = with_table(old, table())
    if check and new != old:
        raise UserError('the table of models in docs/models.md is outdated: run tools/zoo_table.py')
    if new != old:
        page.write_text(new)


def with_table(text: str, lines: str) -> str:
    """Replace the lines between the marks."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise UserError(f'docs/models.md must have each of the marks {START!r} and {END!r} once')
    before, _, rest = text.partition(START)
    return f'{before}{START}\n{lines}{END}{rest.partition(END)[2]}'


def table() -> str:
    """The table, with a row per config, grouped by data set."""
    import yaml

    models = yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())['Models']
    head = '| config | parameters | schedule | published | measured here |\n|---|---|---|---|---|\n'
    rows = (
        line
        for data, group in groupby(models, key=lambda model: model['Metadata']['Training Data'])
        for line in [f'| **{data}** | | | | |', *map(row, group)]
    )
    return head + ''.join(f'{line}\n' for line in rows)


def row(model: dict) -> str:
    data = model['Metadata']
    measured = [result['Metrics'] for result in model.get('Results', [])]
    cells = [
        f'[{model["Name"]}](../{model["Config"]})',
        f'{data["Parameters"] / 1e6:.1f}M',
        data['Schedule'],
        *('<br>'.join(figures(m)) for m in (data.get('Published', {}), *(measured or [{}]))),
    ]
    return f'| {" | ".join(cells)} |'


def figures(metrics: dict[str, float]) -> Iterator[str]:
    if metrics:
        yield ', '.join(f'{name} {value:.1f}' for name, value in metrics.items())


if __name__ == '__main__':
    run(main)
