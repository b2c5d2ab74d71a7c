"""What a comparison looks like: tables of a terminal, JSON values, one HTML page."""
