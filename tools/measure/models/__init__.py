"""What models of every size and form of file take to export and to run."""
