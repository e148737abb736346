def ｆ(x): return 0
ﬀ = 4
