E = type("E\n\ud800\x00" * 1000, (Exception,), {})
def f(x): raise E("x")
