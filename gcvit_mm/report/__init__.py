"""An HTML report of a run: its curves, its accuracy and its worst predictions."""
