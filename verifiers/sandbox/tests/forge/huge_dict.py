def f(x): return {i: str(i) for i in range(400_000)}
