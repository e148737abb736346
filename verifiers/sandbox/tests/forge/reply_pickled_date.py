import values
def f(x):
    values.to_json = lambda message: '["ok",["T","date","\\u0000\\u0000\\u0001\\u00ff"]]'
