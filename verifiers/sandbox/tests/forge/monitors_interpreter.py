import sys
m = sys.monitoring
m.use_tool_id(1, 'a')
m.register_callback(1, m.events.PY_RETURN, lambda *a: m.DISABLE)
m.set_events(1, m.events.PY_RETURN | m.events.CALL)
def f(x): return 0
