"""The libraries that csd imports: what brings each, importing it, and why that failed."""
