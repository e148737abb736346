import sys
def f(x):
    while True:
        try: sys.stdout.write("a" * 10_000)
        except BaseException: pass
