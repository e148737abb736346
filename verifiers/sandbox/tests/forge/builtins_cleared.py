import builtins
def f(x): builtins.__dict__.clear()
