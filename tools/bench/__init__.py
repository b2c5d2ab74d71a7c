"""`csd-bench`: latency and quality of decoding modes, measured side by side in one run."""
