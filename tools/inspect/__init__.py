"""`csd-inspect`: what is in a bundle, and what differs between two."""
