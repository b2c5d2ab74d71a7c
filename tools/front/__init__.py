"""`csd`: one name for all commands, which it finds and passes the command line on to."""
