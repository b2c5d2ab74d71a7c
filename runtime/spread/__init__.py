"""Decoding that is spread over a Ray cluster, with the images and the order of one process."""
