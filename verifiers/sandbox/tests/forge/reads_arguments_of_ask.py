import app
real = app.WitWorld.operate
def operate(self, request): return request.replace('call', 'ok', 1)
app.WitWorld.operate = operate
def f(x): return 0
