"""Python, csd itself and the packages that it takes."""
