def f(x): return range(1 << 4_000_000)
