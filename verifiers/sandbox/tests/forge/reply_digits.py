import values
def f(x):
    values.to_json = lambda message: '["ok",' + '4' * 100_000 + ']'
