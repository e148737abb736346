import codecs
codecs.register_error('backslashreplace', lambda e: ('4', e.end))
def f(x): raise ValueError('\ud800')
