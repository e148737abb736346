import threading, _thread
def f(x):
    try: threading.Thread(target=print).start()
    except RuntimeError: pass
    return _thread.get_ident()
