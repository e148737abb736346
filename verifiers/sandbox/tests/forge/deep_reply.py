import values
def f(x):
    values.to_json = lambda message: '["ok",' + '["l",' * 100_000 + "]" * 100_001
