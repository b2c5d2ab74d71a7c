"""Edge deployment of continuous speculative decoding.

This file makes `csd` a regular package. Without it a folder named `csd`, such as a checkout that
lies where Python starts, would be a part of the package and come first: a regular package anywhere
on the path goes before such folders.
"""
