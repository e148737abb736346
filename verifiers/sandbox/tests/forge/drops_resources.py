import componentize_py_runtime as runtime
def f(x):
    for number in range(100):
        try: runtime.drop_resource(number, number)
        except BaseException: pass
