import sys, values, json
def f(x):
    for m in list(sys.modules.values()): vars(m).clear()
