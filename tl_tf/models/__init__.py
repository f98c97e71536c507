"""Whole models, one per file, each with its build function."""
