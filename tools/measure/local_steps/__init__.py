"""Local AR steps beside the target at fewer AR steps: seconds against quality."""
