import decimal
def f(x): return decimal.Decimal("1e999999")
