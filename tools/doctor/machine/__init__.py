"""What the system tells of a machine, read through `system.py` alone."""
