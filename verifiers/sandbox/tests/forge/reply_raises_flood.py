import values
def f(x):
    values.to_json = lambda message: '["raise","x","ValueError","' + 'a' * 50_000_000 + '"]'
