import values
def f(x):
    values.to_json = lambda message: '["ok",["d",' + '["t",' * 800 + '1' + ']' * 800 + ',1]]'
