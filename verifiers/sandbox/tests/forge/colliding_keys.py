def f(x): return {i * (2**31 - 1): 0 for i in range(60_000)}
