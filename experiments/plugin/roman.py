"""Roman numerals: an environment and its verifier in Python. `build.sh` makes a component of it.

    14?     =XIV

What is printed here is for nobody; `host.log` shows a line to the user.
"""

import json
import re

import wit_world.exports
from componentize_py_types import Err, Ok
from wit_world.exports.environment import About, Next_Done, Next_More, Split, Task
from wit_world.exports.verifier import Outcome, Verdict
from wit_world.imports.types import Message, Reference_Answer, ReferenceKind, Role

LETTERS = [
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
    (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
]
ANSWER = re.compile(r"=([IVXLCDM]+)")


def roman(number):
    text = ""
    for value, letters in LETTERS:
        text += letters * (number // value)
        number %= value
    return text


class Environment(wit_world.exports.Environment):
    """The numbers up to `largest`; every fifth is held out."""

    def open(self, options, seed):
        options = json.loads(options)
        self.largest = options.pop("largest", 100)
        if options:
            raise Err("unknown options: " + ", ".join(options))
        if type(self.largest) is not int or not 10 <= self.largest <= 3999:
            raise Err("`largest` is an integer from 10 to 3999")
        held_out = self.largest // 5
        return About(
            train=self.largest - held_out, test=held_out, verifier="exact", verifier_options='{"after": "="}',
            reference=ReferenceKind.ANSWER, styles=["bare"],
        )

    def get_task(self, split, index):
        # 1 2 3 4 | 6 7 8 9 | ... to learn from, 5 10 15 ... to measure with.
        number = 5 * (index + 1) if split == Split.TEST else index // 4 * 5 + index % 4 + 1
        prompt = [Message(Role.USER, f"{number}?")]
        return Task(prompt, Reference_Answer(roman(number)), notes="")

    def write_reply(self, task, style, seed):
        return "=" + task.reference.value if style == "bare" else None

    def step(self, task, messages):
        # One hint for a reply that is no numeral at all.
        if len(messages) == 1 and not ANSWER.fullmatch(messages[0].content):
            return Next_More([Message(Role.USER, "?")])
        return Next_Done()


class Verifier(wit_world.exports.Verifier):
    """The share of the numeral that is right from its beginning on; all of it is correct."""

    def open(self, options):
        if json.loads(options):
            raise Err("this verifier has no options")

    def judge(self, batch):
        return [self.verdict(conversation) for conversation in batch]

    def verdict(self, conversation):
        if not isinstance(conversation.reference, Reference_Answer):
            return Err("there is no answer to compare with")
        wanted = conversation.reference.value
        said = ANSWER.search(conversation.messages[-1].content)
        if said is None:
            return Ok(Verdict(0.0, Outcome.MALFORMED, [], "no =NUMERAL"))
        said = said[1]
        if said == wanted:
            return Ok(Verdict(1.0, Outcome.CORRECT, [("right", 1.0)], None))
        same = 0
        while same < min(len(said), len(wanted)) and said[same] == wanted[same]:
            same += 1
        share = same / max(len(said), len(wanted))
        return Ok(Verdict(share / 2, Outcome.GRADED, [("right", share)], f"{said}, not {wanted}"))
