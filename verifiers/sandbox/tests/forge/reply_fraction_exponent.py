import values
def f(x):
    values.to_json = lambda message: '["ok",["F","1e999999999",null]]'
