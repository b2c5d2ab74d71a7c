"""The file that evaluations are kept in: SQLite, one file for any number of runs."""
