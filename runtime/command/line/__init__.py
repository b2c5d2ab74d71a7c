"""The command line of every command: how it is called, what was given, completion, and logs."""
