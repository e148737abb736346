import values
def f(x):
    values.to_json = lambda message: '["ok",["d",["l"],true]]'
