"""Inference on large images in overlapping tiles."""
