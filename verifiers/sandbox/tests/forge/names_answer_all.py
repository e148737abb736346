import app
class All(dict):
    def __contains__(self, name): return True
    def __getitem__(self, name): return lambda *a: True
app.PROGRAM.names = All()
