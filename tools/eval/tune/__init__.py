"""The fastest setting that is still as good, and the preset that it becomes."""
