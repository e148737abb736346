def f(x):
    out = []
    while True:
        try: out.append("x" * 1_000_000)
        except MemoryError: return out
