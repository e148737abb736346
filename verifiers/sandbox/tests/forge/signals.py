import signal
try: signal.signal(signal.SIGINT, lambda *a: None)
except Exception: pass
try: signal.raise_signal(signal.SIGINT)
except BaseException: pass
def f(x): return 0
