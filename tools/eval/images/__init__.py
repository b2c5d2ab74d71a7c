"""Where images come from: those of runs, batch after batch, and real ones."""
