"""Entry points of the component, and what its snapshot holds.

Whatever is imported here exists later; nothing else can be imported, for there is no file system.
"""

import gc
import importlib
import sys

ABSENT = []
for _name in """abc argparse array ast asyncio base64 binascii bisect builtins calendar cmath cmd code
codecs collections collections.abc colorsys concurrent.futures configparser contextlib contextvars
copy copyreg csv dataclasses datetime decimal difflib dis doctest email email.message
encodings.ascii encodings.cp1252 encodings.cp437 encodings.hex_codec encodings.idna
encodings.latin_1 encodings.punycode encodings.raw_unicode_escape encodings.rot_13
encodings.unicode_escape encodings.utf_16 encodings.utf_16_be encodings.utf_16_le encodings.utf_32
encodings.utf_8_sig enum errno fileinput fnmatch fractions functools gc getopt getpass glob
graphlib gzip hashlib heapq hmac html html.entities html.parser inspect io ipaddress itertools json
keyword linecache locale logging math numbers opcode operator os os.path pathlib pickle pickletools
platform posixpath pprint queue quopri random re reprlib sched secrets selectors shlex shutil signal
socket stat statistics string string.templatelib stringprep struct subprocess symtable sys
sysconfig tempfile textwrap threading time timeit token tokenize tomllib traceback types typing
unicodedata unittest unittest.mock urllib.parse uuid warnings weakref xml.dom.minidom
xml.etree.ElementTree zipfile zlib zoneinfo _strptime bz2 lzma sqlite3 ctypes multiprocessing
resource""".split():
    try:
        importlib.import_module(_name)
    except BaseException:
        ABSENT.append(_name)

import wit_world

import quiet_loop
from judge import Judge
from program import Program
from values import from_json

quiet_loop.install()
PROGRAM = Program()
JUDGE = Judge(wit_world.ask)


def _warm():
    """Takes the paths of every run once, so that the snapshot holds what they build."""
    warm = Program()
    judge = Judge(warm.operate)
    for source in (
        "import re, json\ndef f(x):\n    return sorted(x)\nprint(f([2, 1]), end='', file=__import__('io').StringIO())\n"
        "re.sub('a', 'b', 'cac'), json.dumps({'a': 1})",
        "raise SystemExit(0)",
        "1/0",
    ):
        warm.load(source, 1000, 0)
    warm.load("def f(x):\n    return sorted(x)", 1000, 0)
    for inside in (False, True):
        judge.check(
            {"tests": "def check(c):\n    assert c([2, 1]) == [1, 2]\n    assert c((1,)) == 3",
             "prelude": "", "entry": "f", "partial": True, "fresh": False, "inside": inside},
            warm,
        )


_main = sys.modules["__main__"]
_warm()
sys.modules["__main__"] = _main
gc.collect()
gc.freeze()


class WitWorld(wit_world.WitWorld):
    def load(self, source: str, recursion: int, seed: int) -> str:
        return PROGRAM.load(source, recursion, seed)

    def more(self, source: str) -> str:
        return PROGRAM.more(source)

    def operate(self, request: str) -> str:
        return PROGRAM.operate(request)

    def check(self, request: str) -> str:
        return JUDGE.check(from_json(request), PROGRAM)
