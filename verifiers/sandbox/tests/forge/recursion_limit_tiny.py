import sys
def f(x): sys.setrecursionlimit(30)
