class C: pass
C.__call__ = C()
f = C()
