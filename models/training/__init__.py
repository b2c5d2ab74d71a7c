"""Train the shipped models."""
