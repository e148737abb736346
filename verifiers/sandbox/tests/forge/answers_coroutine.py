async def f(x): return 4
