class Gone(BaseException): pass
class Foreign(BaseException): pass
def f(x): raise (Gone if x == 2 else Foreign)("the tests pass")
