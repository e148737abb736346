import componentize_py_runtime as runtime
def f(x): return runtime.call_import(0, ['["fresh"]'])
