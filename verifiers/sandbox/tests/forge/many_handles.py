def f(x): return [object() for _ in range(20_000)]
