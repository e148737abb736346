def g(x): return x
def f(x):
    g.__code__ = g.__code__.replace(co_code=bytes(range(256)) * 4, co_stacksize=0)
    return g(x)
