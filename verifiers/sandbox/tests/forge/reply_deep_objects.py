import values
def f(x):
    values.to_json = lambda message: '["ok",' + '{"a":' * 20_000 + '1' + '}' * 20_000 + ']'
