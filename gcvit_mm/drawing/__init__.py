"""Drawings of predictions, ground truth, model inputs and attention maps."""
