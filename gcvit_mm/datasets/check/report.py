"""Reports of a check, and their output as tables or JSON."""

import json
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...errors import UserError, printable
from ...fileio import atomic_text

Severity = Literal['error', 'warning', 'note']
SEVERITIES: dict[Severity, str] = {'error': 'red', 'warning': 'yellow', 'note': 'cyan'}
# Places printed per problem, and classes printed at each end of a long list.
SHOWN, SHOWN_CLASSES = 3, 12


MISMATCH = 'config does not match the data'


class Finding(NamedTuple):
    """One problem at one place."""

    severity: Severity
    what: str
    where: str


@dataclass
class Report:
    """Problems and statistics of a data set, which one or more data loaders read."""

    name: str  # the splits, such as 'train' or 'val, test'
    source: str  # type and path of the data set
    file: str = ''  # the annotation file, or the folder
    # The places of each problem, in the order of the data.
    problems: dict[tuple[Severity, str], list[str]] = field(default_factory=dict)
    # Counts of each class by kind, such as objects and images.
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    # The class folders that labels were read from, in the order of the labels.
    folders: list[str] = field(default_factory=list)
    # Values of each kind of size, in pixels unless its name has another unit.
    sizes: dict[str, list[float]] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)  # hash of each image file, by path
    # Number of images and objects in the file, and of those that are used.
    used: dict[str, dict] = field(default_factory=dict)
    # The file name of each image, by id, in COCO files.
    names: dict[int, str] = field(default_factory=dict)
    # What was read of a COCO file, without looking at pixels, for the data set that reads it next.
    content: dict = field(default_factory=dict)

    def add(self, severity: Severity, what: str, where: str = '') -> None:
        self.problems.setdefault((severity, printable(what)), []).append(printable(where))

    def add_mismatch(self, error: UserError) -> None:
        """Add an error that stops the check of a data set, or of a part of it."""
        self.add('error', MISMATCH, str(error))

    def label(self, what: str) -> str:
        """What to print before the place of a problem, outside of a table."""
        return '' if what == MISMATCH else f'{self.name} data, {self.file}: {what}: '

    def extend(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.add(*finding)

    def count(self, severity: Severity) -> int:
        """The number of places with problems of a severity."""
        return sum(len(places) for key, places in self.problems.items() if key[0] == severity)

    def used_in_words(self) -> str:
        """How many images and objects are used, and why the others are not."""
        images, objects = self.used['images'], self.used['objects']
        reasons = [f'{count} {reason}' for reason, count in objects['skipped'].items()]
        reasons += [f'{objects["crowds"]} crowds'] * bool(objects['crowds'])
        skipped = f' (not used: {", ".join(reasons)})' if reasons else ''
        return (
            f'used: {images["used"]} of {images["file"]} images, '
            f'{objects["used"]} of {objects["file"]} objects{skipped}'
        )

    def as_dict(self) -> dict:
        """The report as a dict that can be written as JSON."""
        return {
            'splits': self.name.split(', '),
            'source': self.source,
            'images': len(self.digests),
            'problems': [
                {'severity': severity, 'problem': what, 'count': len(places), 'where': places}
                for (severity, what), places in self._sorted_problems()
            ],
            'used': self.used,
            'classes': self.classes,
            'sizes': {name: _spread(values) for name, values in self.sizes.items() if values},
        }

    def _sorted_problems(self) -> list[tuple[tuple[Severity, str], list[str]]]:
        order = list(SEVERITIES)
        return sorted(self.problems.items(), key=lambda item: order.index(item[0][0]))


def summary(reports: Sequence[Report]) -> str:
    """The number of errors, warnings and notes in one line."""
    counts = {name: sum(report.count(name) for report in reports) for name in SEVERITIES}
    return ', '.join(f'{count} {name}{"s" * (count != 1)}' for name, count in counts.items())


def print_reports(reports: Sequence[Report]) -> None:
    """Print tables of problems, classes and sizes to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal and 'COLUMNS' not in os.environ:
        console.width = 10_000  # keeps each place on one line in files
    with console.capture() as capture:
        for report in reports:
            console.print(Text(f'{report.name}: {report.source}, {len(report.digests)} images'))
            if report.used:
                console.print(Text(f'    {report.used_in_words()}'))
        for table in _tables(reports):
            console.print()
            console.print(table)
        console.print(f'\n{summary(reports)}')
    print('\n'.join(line.rstrip() for line in capture.get().splitlines()))


def _tables(reports: Sequence[Report]) -> Iterator[Table]:
    if any(report.problems for report in reports):
        yield _problem_table(reports)
    for report in reports:
        if report.classes:
            yield _class_table(report)
        if any(report.sizes.values()):
            yield _size_table(report)


def write_reports(reports: Sequence[Report], path: str) -> None:
    """Write reports to a JSON file."""
    atomic_text(path, json.dumps([report.as_dict() for report in reports], indent=1) + '\n')


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column, justify='right' if column in right else 'left', overflow='fold', vertical='top'
        )
    return table


def _problem_table(reports: Sequence[Report]) -> Table:
    table = _table('', 'split', 'problem', 'count', 'where', right=['count'])
    rows = [(report.name, *row) for report in reports for row in report._sorted_problems()]
    rows.sort(key=lambda row: list(SEVERITIES).index(row[1][0]))
    for split, (severity, what), places in rows:
        shown = [place for place in places[:SHOWN] if place]
        if len(places) > SHOWN:
            shown.append(f'and {len(places) - SHOWN} more')
        table.add_row(
            Text(severity, SEVERITIES[severity]),
            split,
            Text(what),
            str(len(places)),
            Text('\n'.join(shown)),
        )
    return table


def _class_table(report: Report) -> Table:
    kinds = list(next(iter(report.classes.values())))
    table = _table(f'{report.name}: class', *kinds, right=kinds)
    names = list(report.classes)
    if len(names) > 2 * SHOWN_CLASSES + 1:
        names.sort(key=lambda name: report.classes[name][kinds[0]], reverse=True)
        hidden = len(names) - 2 * SHOWN_CLASSES
        names[SHOWN_CLASSES:-SHOWN_CLASSES] = [f'({hidden} more classes)']
    for name in names:
        counts = report.classes.get(name, {})
        table.add_row(
            Text(printable(name)), *(f'{counts[kind]:g}' if counts else '' for kind in kinds)
        )
    return table


def _size_table(report: Report) -> Table:
    columns = ['min', 'median', 'max']
    table = _table(f'{report.name}: size', *columns, right=columns)
    for name, values in report.sizes.items():
        if values:
            spread = _spread(values)
            table.add_row(name, *(f'{round(spread[column], 1):g}' for column in columns))
    return table


def _spread(values: list[float]) -> dict[str, float]:
    return {'min': min(values), 'median': statistics.median(values), 'max': max(values)}
