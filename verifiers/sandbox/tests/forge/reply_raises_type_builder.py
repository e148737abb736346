import values
def f(x):
    values.to_json = lambda message: '["raise","x","__build_class__","4"]'
