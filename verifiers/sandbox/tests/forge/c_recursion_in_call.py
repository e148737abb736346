import ast
def f(x): return ast.parse('-' * 200_000 + '4')
