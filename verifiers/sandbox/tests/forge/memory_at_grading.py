hoard = []
try:
    while True: hoard.append(bytearray(1 << 16))
except MemoryError: pass
def f(x): return [x] * 100_000
