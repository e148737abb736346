def f(x): return "\ud800\x00" * 20_000_000
