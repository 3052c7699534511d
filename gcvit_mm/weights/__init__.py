"""Weights: reading, writing, conversion, loading, downloading."""
