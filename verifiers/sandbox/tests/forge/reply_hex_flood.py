import values
def f(x):
    values.to_json = lambda message: '["ok",["I","' + 'f' * 50_000_000 + '"]]'
