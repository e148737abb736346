import _thread
def f(x):
    _thread.interrupt_main()
    while True: pass
