import app
app.WitWorld.operate = lambda self, request: [1, 2, 3]
def f(x): return 0
