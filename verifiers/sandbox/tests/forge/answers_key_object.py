import functools
def f(x): return functools.cmp_to_key(lambda a, b: 0)(4)
