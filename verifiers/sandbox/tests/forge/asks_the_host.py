import wit_world
def f(x): return wit_world.ask('["fresh"]')
