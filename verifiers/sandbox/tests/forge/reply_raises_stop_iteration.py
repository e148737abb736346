import values
def f(x):
    values.to_json = lambda message: '["raise","Stop","StopIteration",""]'
