"""An HTML report of a training: its curves, its accuracy and its worst predictions."""
