"""The web page as its program starts it, with a model that also repeats what it is told to.

A question that holds ``SAY <key>`` is answered with that saying, a few letters at a time; every other one by the model.
"""

import sys
import time

from python_script import web_demo
from src.evaluation import backends
from src.evaluation.backends import Generation, TransformersBackend

HOSTILE = """<script>document.title = "broken"</script><img src="x" onerror="document.title = 'broken'">**bold** </p>"""
SAYINGS = {
    "hostile": HOSTILE,
    "boxes": "<think>Two tanks.</think><answer>(100,200),(400,500) and (600,600),(900,950)</answer>",
    "thoughts": "<think>There is a runway, " + "so " * 60 + "it is one.</think>\n<answer>An airport.</answer>",
    "cut": "<think>There is a runway and then there is",
    "long": " ".join(str(number) for number in range(1, 5000)),  # a minute
}


class Parrot(TransformersBackend):
    def watch(self, request, sampling, seen):
        key = request.turns[-1]["content"].partition("SAY ")[2]
        if not key:
            return super().watch(request, sampling, seen)
        text = SAYINGS[key]
        for end in range(4, len(text) + 4, 4):
            time.sleep(0.01)
            if seen([text[:end]] * sampling.n):
                return Generation([text[:end]] * sampling.n)
        return Generation([text] * sampling.n)


if __name__ == "__main__":
    backends.BACKENDS["transformers"] = Parrot
    web_demo.main(sys.argv[1:])
