"""`csd-doctor`: will a bundle run on this machine, and which command mends what is in its way.

It starts where packages are broken: nothing here imports NumPy or a backend before it is known to
be whole.
"""
