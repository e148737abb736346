import app
def f(x): return app.PROGRAM.load('def f(x): return True', 1000, 0)
