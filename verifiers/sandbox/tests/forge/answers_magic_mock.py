from unittest.mock import MagicMock
f = MagicMock(return_value=MagicMock(__eq__=lambda *a: True, __hash__=lambda s: 4))
