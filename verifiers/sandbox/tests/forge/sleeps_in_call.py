import time
def f(x):
    start = time.monotonic()
    while time.monotonic() - start < 1e9: time.sleep(1e8)
