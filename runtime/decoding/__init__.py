"""The decode loops: from labels to tokens."""
