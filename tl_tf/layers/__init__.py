"""Layers of the paper, one idea per file."""
