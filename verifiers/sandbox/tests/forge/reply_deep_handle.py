import values
def f(x):
    values.to_json = lambda message: '["ok",["h",' + '[' * 5_000 + ']' * 5_000 + ',"int"]]'
