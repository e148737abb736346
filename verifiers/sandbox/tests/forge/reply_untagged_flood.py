import values
def f(x):
    values.to_json = lambda message: '["ok",["l"' + ',[]' * 10_000_000 + ']]'
