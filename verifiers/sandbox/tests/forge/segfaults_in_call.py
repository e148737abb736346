import faulthandler
def f(x): faulthandler._read_null()
