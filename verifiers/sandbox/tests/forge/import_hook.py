import sys, builtins
class Finder:
    def find_spec(self, name, path=None, target=None): raise SystemExit(0)
sys.meta_path.insert(0, Finder())
builtins.__import__ = lambda *a, **k: sys
def f(x): return __import__("anything")
