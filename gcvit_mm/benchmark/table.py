"""Tables of benchmark results."""

from typing import Any


def heading(run: dict[str, Any]) -> str:
    """Describe the setting of a measurement in a line."""
    height, width = run['size']
    images = f'{run["batch"]} image{"s" * (run["batch"] > 1)}'
    return f'{run["mode"]}, {run["dtype"]}, {images} of {height}x{width}'


def table(run: dict[str, Any]) -> list[list[str]]:
    """The rows of a table: titles, then one row per model.

    The last columns are the time of the model divided by that of each model, by number.
    """
    names = [row['model'] for row in run['models']]
    over = [f'time / {i}' for i in range(1, len(names) + 1)]
    titles = ['', 'model', 'ms', 'quartiles', 'images/s', 'peak MB', 'GFLOP', 'GB', 'time / floor']
    return [
        [*titles, *over],
        *(
            [str(i), row['model'], 'out of memory', *[''] * (len(titles) + len(over) - 3)]
            if 'seconds' not in row
            else [
                str(i),
                row['model'],
                _digits(1e3 * row['seconds']),
                '-'.join(_digits(1e3 * quartile) for quartile in row['quartiles']),
                _digits(row['images_per_second']),
                '-' if row['peak_bytes'] is None else f'{row["peak_bytes"] / 1e6:.0f}',
                _digits(row['flops'] / 1e9),
                f'{row["bytes"] / 1e9:.2f}',
                f'{row["times_floor"]:.1f}',
                *(
                    f'{row["time_over"][name]:.2f}' if name in row['time_over'] else ''
                    for name in names
                ),
            ]
            for i, row in enumerate(run['models'], 1)
        ),
    ]


def _digits(value: float) -> str:
    """Format a number with three significant digits, or more before the decimal point."""
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'
