"""Measure, compare and inspect."""
