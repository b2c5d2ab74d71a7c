"""One command that checks and measures csd on a machine with a GPU."""
