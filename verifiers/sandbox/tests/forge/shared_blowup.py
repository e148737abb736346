def f(x):
    out = [0]
    for _ in range(60): out = [out, out]
    return out
