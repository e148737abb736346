import values
values.from_json = lambda text: ['name', 'answer']
answer = True
def f(x): return 0
