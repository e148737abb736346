import values
values.Writer.write = lambda self, value, depth: {"__class__": "any"}
def f(x): return 0
