"""A bundle on this machine: its files, what runs it, the memory it takes, and a short run."""
