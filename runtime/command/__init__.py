"""What every command shares: its frame, its parser, and the files that it writes."""
