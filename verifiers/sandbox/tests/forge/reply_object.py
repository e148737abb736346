import values
def f(x):
    values.to_json = lambda message: '{"0":"ok","1":true}'
