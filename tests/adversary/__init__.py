"""The product tried again as a new user would, and as an adversary: `python -m tests.adversary`."""
