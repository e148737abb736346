class E(Exception):
    def __str__(self): return "a" * 10**7 + "\n\x00\ud800"
def f(x): raise E()
