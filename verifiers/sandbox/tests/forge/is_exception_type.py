class f(StopIteration): pass
