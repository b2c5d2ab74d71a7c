"""Local AR steps: which steps compute the whole backbone, what these keep, what others compute."""
