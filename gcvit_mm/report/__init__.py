"""One page about a training: what it did, how good it is, and where it fails."""

from .run import Run, find_predictions, read_run
from .write import write_report

__all__ = ['Run', 'find_predictions', 'read_run', 'write_report']
