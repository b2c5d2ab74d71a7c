"""`csd-eval`: is the faster version still as good, and which setting should be shipped?"""
