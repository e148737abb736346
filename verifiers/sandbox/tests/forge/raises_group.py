def f(x): raise BaseExceptionGroup('a', [SystemExit(0), KeyboardInterrupt()])
