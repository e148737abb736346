"""An event loop for asyncio that needs no sockets: it only ever waits for its own timers."""

import asyncio
import time


class _Selector:
    """What a loop asks of a selector when nothing can ever become readable."""

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("every task waits and nothing can wake one: a deadlock")
        if timeout > 0:
            time.sleep(timeout)
        return []

    def get_map(self):
        return {}

    def close(self):
        pass


class QuietLoop(asyncio.base_events.BaseEventLoop):
    """The loop that `asyncio.run` uses here; time passes on the virtual clock."""

    def __init__(self):
        super().__init__()
        self._selector = _Selector()

    def _process_events(self, event_list):
        pass

    def _write_to_self(self):
        pass


class _Policy(asyncio.events._BaseDefaultEventLoopPolicy):
    _loop_factory = QuietLoop


def install():
    asyncio.events._event_loop_policy = _Policy()
