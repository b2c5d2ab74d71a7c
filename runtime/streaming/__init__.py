"""Runs of a session that are watched, cancelled, and take turns."""
