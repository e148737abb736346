class E(Exception):
    @property
    def __traceback__(self): return self
    tb_next = property(lambda self: self)
    tb_frame = property(lambda self: self)
    f_code = co_filename = tb_frame
def f(x): raise E
