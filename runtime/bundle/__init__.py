"""The bundle: what is in it, and whether it is what it says."""
