def cases(place, everything):
    return iter(())
