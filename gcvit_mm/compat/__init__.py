"""Descriptions of the OpenMMLab packages, and changes to them at run time."""
