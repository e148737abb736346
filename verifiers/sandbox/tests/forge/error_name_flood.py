class E(Exception): pass
E.__name__ = 'E' * 50_000_000
raise E
def f(x): return 0
