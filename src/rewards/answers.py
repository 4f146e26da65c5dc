"""What an answer says: one reading for training, evaluation, best-of-N and rewards.

The rules are those of ``docs/metrics.md``. They read an answer as a whole, never as a part of another one, and tell an
answer that cannot be read from a wrong one.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # of the thinking format
ANSWER_KINDS = ("cls", "yesno", "rural_urban", "count", "choice")
_WORD_SETS = {"yesno": ("yes", "no"), "rural_urban": ("rural", "urban")}
_NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_WORDS = {word: number for number, word in enumerate(_NUMBER_WORDS)}
_RANGE_WORDS = {"than", "least", "most", "over", "under", "between"}  # the number beside them is a bound
_QUOTES = "`\"'*“”‘’«»„"
_ENDS = ".,;:!?。"
_LEAD_IN = re.compile(
    r"(?:(?:the|my)\s)?(?:(?:final|correct|best|right)\s)?(?:answer|option|choice)\b(?:\sis\b)?\s?:?", re.I
)
_ARTICLE = re.compile(r"(?:an?|the)\s", re.I)
_TOKEN = re.compile(r"-?\d+(?:[.,]\d+)*|[^\W\d_]+")
_INTEGER = re.compile(r"(\d+|\d{1,3}(?:,\d{3})+)(?:\.0+)?")
_LETTERS = re.compile(r"[^\W\d_]+")
_BARE_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?")
_LETTER_MARKS = (
    re.compile(r"[(\[]([A-Za-z])[)\]]"),
    re.compile(r"(?:^|(?<=[\s(\[\"'*]))([A-Z])(?=[).:])"),
    re.compile(
        r"\b(?i:answer|option|choice)(?i:\sis\b)?\s?:?\s?([A-Z])(?![^\W_])(?!\s?(?:,|/|&|and\b|or\b)\s?[A-H]\b)"
    ),
)
_LEADING_LETTER = re.compile(r"([A-Za-z])[).:]")
_LEADING_MARK = re.compile(r"(?:[(\[][A-Za-z][)\]][.:]?|[A-Za-z][).:])")
_CHOICE_REFERENCE = re.compile(r"[(\[]?[A-H](?:[)\].:].*)?", re.S)


@dataclass(frozen=True)
class Judgement:
    """What was read in an answer, and whether it is right.

    Attributes:
        answer: a class in plain form, a word of the set, a number or an option's letter; None if nothing could be read.
        right: equals the reference.
        unparsed: nothing could be read, which is never right.
    """

    answer: str | int | None
    right: bool
    unparsed: bool


def final_answer(text: str | None) -> str:
    """What an answer comes to: without its reasoning, and out of its ``<answer>`` tags where it has them.

    Reasoning that was cut off holds no answer.

    >>> final_answer("<think>two piers</think>\\n<answer>\\nA harbour.</answer>")
    'A harbour.'
    >>> final_answer("<think>two piers, so it could be")
    ''
    """
    text = text or ""
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        text = "".join(text.partition("<think>")[2].partition("<answer>")[1:])
    if "<answer>" in text:
        text = text.rpartition("<answer>")[2]
    return text.partition("</answer>")[0].strip()


def normalise_answer(text: str) -> str:
    """The plain form in which two answers are compared.

    Lower case, compatibility forms of Unicode, single blanks; without quotes, marks at the end, a lead-in such as
    "The answer is:" and one article at the start.

    >>> normalise_answer(" The final answer is **A  Harbour**.")
    'harbour'
    """
    return _trim(_flat(text).casefold())


def squash_answer(text: str) -> str:
    """The plain form without blanks, ``-`` and ``_``: "dense_residential" and "DenseResidential" are one class."""
    return re.sub(r"[\s_-]", "", normalise_answer(text))


def judge(kind: str, text: str | None, reference: str, options: Mapping[str, str] | None = None) -> Judgement:
    """Read an answer and compare it with its reference.

    Args:
        kind: ``cls`` (equal in squashed form), ``yesno``, ``rural_urban`` (the first word, if the other one of the set
            is nowhere), ``count`` (the one integer, in digits or words) or ``choice`` (an option's letter, or text).
        text: as the model gave it, with its reasoning; None counts as empty.
        options: of ``choice``: letter to text; without them the text behind the letter of the reference is used.

    Raises:
        ValueError: another kind.
    """
    said = final_answer(text)
    if kind == "cls":
        return _compared(squash_answer(said) or None, squash_answer(reference))
    if kind in _WORD_SETS:
        return _compared(_word(said, _WORD_SETS[kind]), _word(reference, _WORD_SETS[kind]))
    if kind == "count":
        wanted = read_count(reference)
        if wanted is None:
            return _compared(normalise_answer(said) or None, normalise_answer(reference))
        return _compared(read_count(said), wanted)
    if kind == "choice":
        return _judge_choice(said, reference, options)
    raise ValueError(f"unknown kind of answer {kind!r}; known are {', '.join(ANSWER_KINDS)}")


def answer_kind(reference: str) -> str:
    """Which rule an answer to this reference is read by, where nothing else says so."""
    norm = normalise_answer(reference)
    for kind, words in _WORD_SETS.items():
        if norm in words:
            return kind
    if norm.isdecimal() or norm in _WORDS:
        return "count"
    return "choice" if _CHOICE_REFERENCE.fullmatch(_flat(reference)) else "cls"


def same_answer(text: str | None, references: Sequence[str]) -> bool:
    """Whether an answer comes to one of the references, each read by its own kind (:func:`answer_kind`)."""
    return any(judge(answer_kind(reference), text, reference).right for reference in references)


def read_count(text: str) -> int | None:
    """The one whole number that a text states; None if there is none, or several, or only a bound.

    >>> read_count("There are three ships (3).")
    3
    """
    values = set()
    for token in _TOKEN.findall(normalise_answer(text)):
        if token in _RANGE_WORDS:
            return None
        if token in _WORDS:
            values.add(_WORDS[token])
        elif not token.isalpha():
            match = _INTEGER.fullmatch(token)
            if not match:
                return None
            values.add(int(match[1].replace(",", "")))
    return values.pop() if len(values) == 1 else None


def _compared(answer: str | int | None, wanted: str | int | None) -> Judgement:
    return Judgement(answer, answer is not None and answer == wanted, answer is None)


def _flat(text: str) -> str:
    shown = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join("".join(shown).split())


def _trim(text: str, articles: bool = True) -> str:
    before = None
    while text != before:
        before = text
        text = text.strip().strip(_QUOTES).strip().rstrip(_ENDS)
        if match := _LEAD_IN.match(text):
            text = text[match.end() :]
        if articles and (match := _ARTICLE.match(text)):
            text = text[match.end() :]
    return text


def _word(text: str, words: tuple[str, ...]) -> str | None:
    said = _LETTERS.findall(normalise_answer(text))
    return said[0] if said and said[0] in words and not {*words} - {said[0]} & {*said} else None


def _judge_choice(said: str, reference: str, options: Mapping[str, str] | None) -> Judgement:
    letters, wanted = _option_letters(said, options), _option_letters(reference, options)
    if len(letters) > 1:
        return Judgement(None, False, True)
    if letters and wanted:
        return _compared(letters.pop(), wanted.pop() if len(wanted) == 1 else None)
    if options:
        return _compared(next(iter(letters), None), None)
    rest, wanted_rest = _behind_letter(said), _behind_letter(reference)
    return _compared(rest if wanted_rest else None, wanted_rest) if rest else Judgement(None, False, True)


def _option_letters(text: str, options: Mapping[str, str] | None) -> set[str]:
    """The option letters that a text names; several mean that it does not decide."""
    flat = _flat(text)
    plain = _trim(flat, articles=False)
    valid = {*options} if options else {*"ABCDEFGH"}
    if (match := _BARE_LETTER.fullmatch(plain)) and match[1].upper() in valid:
        return {match[1].upper()}
    if options:
        same = [letter for letter, option in options.items() if squash_answer(option) == squash_answer(text)]
        if len(same) == 1:
            return {*same}
    found = [match[1] for pattern in _LETTER_MARKS for match in pattern.finditer(flat)]
    if match := _LEADING_LETTER.match(plain):
        found.append(match[1])
    return {letter.upper() for letter in found} & valid


def _behind_letter(text: str) -> str:
    plain = _trim(_flat(text), articles=False)
    if _BARE_LETTER.fullmatch(plain):
        return ""
    return squash_answer(_LEADING_MARK.sub("", plain, count=1) if _LEADING_MARK.match(plain) else plain)
