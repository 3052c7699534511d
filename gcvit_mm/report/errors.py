"""What keeps a detector from a higher AP50: kinds of errors, as TIDE defines them.

Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors (ECCV 2020).
"""

import numpy as np

from .evaluation import Column, Table
from .intervals import average_precision
from .matches import Matches

RIGHT, BACKGROUND = 0.5, 0.1
"""IoU of a correct prediction, and below which a prediction is on the background."""
MEANINGS = {
    'classification': f'on an object (IoU of at least {RIGHT}), but of another class',
    'localisation': f'of the right class, but its IoU is only {BACKGROUND} to {RIGHT}',
    'both': f'IoU of {BACKGROUND} to {RIGHT} with an object of another class',
    'duplicate': 'on an object that a prediction with a higher score has found',
    'background': f'on no object (IoU below {BACKGROUND})',
    'missed': 'objects with neither a correct nor a misclassified or badly placed prediction',
}
COLUMNS = [
    Column('error', 'text'),
    Column('number', 'count'),
    Column('costs AP50', 'percent', 'by which AP50 rises if these errors are fixed'),
    Column('meaning', 'text'),
]


def kinds_of_errors(matches: Matches) -> np.ndarray:
    """Name the kind of error of each prediction; '' for correct and ignored ones."""
    found = matches.predictions
    conditions = {  # Where several hold, the authors' program chooses the first, too.
        '': (found.correct | found.ignored)[:, 0],
        'localisation': (found.own >= BACKGROUND) & (found.own < RIGHT),
        'classification': found.other >= RIGHT,
        'duplicate': found.own >= RIGHT,
        'background': np.maximum(found.own, found.other) < BACKGROUND,
    }
    return np.select(list(conditions.values()), list(conditions), 'both')


def costs_of_errors(matches: Matches) -> dict[str, tuple[int, float]]:
    """Count the errors of each kind, and compute the rise of AP50 if they are fixed."""
    kinds, all_objects = kinds_of_errors(matches), matches.count_objects()
    found = matches.predictions
    targets = np.where(kinds == 'localisation', found.own_object, found.other_object)
    missed = ~matches.objects.found
    missed[targets[np.isin(kinds, ['classification', 'localisation'])]] = False

    def ap50(predictions: np.recarray, objects: np.ndarray) -> float:
        figures = average_precision(predictions, objects, np.ones((1, len(matches.images)), int))
        annotated = figures[0, all_objects.any(1)]  # Classes of only missed objects count as 0.
        return float(np.nan_to_num(annotated).mean()) if len(annotated) else 0.0

    before, costs = ap50(found, all_objects), {}
    for kind in MEANINGS:
        fixed, mine = found.copy(), np.flatnonzero(kinds == kind)
        fixed.ignored[mine, 0] = True
        if kind in ('classification', 'localisation'):
            mine = mine[~matches.objects.found[targets[mine]]]
            # The first for an object has the highest score; the others would be duplicates.
            objects, first = np.unique(targets[mine], return_index=True)
            fixed.label[mine[first]] = matches.objects.label[objects]
            fixed.correct[mine[first], 0], fixed.ignored[mine[first], 0] = True, False
        if kind == 'missed':
            costs[kind] = int(missed.sum()), ap50(fixed, matches.count_objects(~missed)) - before
        else:
            costs[kind] = int((kinds == kind).sum()), ap50(fixed, all_objects) - before
    return costs


def table_of_errors(matches: Matches) -> Table:
    """Tabulate the kinds of errors."""
    costs = costs_of_errors(matches)
    rows = [[kind, n, 100 * cost, MEANINGS[kind]] for kind, (n, cost) in costs.items()]
    return Table('Kinds of errors', COLUMNS, rows)
