"""What a prompt says of its story's length: for `target_word_count` to say, and nobody else.

Training and evaluation add the length to a prompt; one that names its own gives the model two.
"""

from __future__ import annotations

import re

_NUMBER = r"\b\d[\d,.]*k?\s*(?:(?:to|and|-|\u2013)\s*\d[\d,.]*k?\s*)?"
_LENGTH = re.compile(rf"{_NUMBER}[-\u2011]?\s*(?:words?|pages?)\b", re.IGNORECASE)
_WORDS = re.compile(  # ten or more: "she says 3 words" asks for no length
    r"(?:\d[\d,.]*\dk?|\dk)[-\u2011\s]*words?\b|\b(?:word (?:count|limit)|length)\s*[:=]\s*\d",
    re.IGNORECASE,
)
_ABOUT = (
    r"(?:(?:a|the|total|length|maximum|minimum|max|min|of|about|around|approximately|approx\.?"
    r"|roughly|some|exactly|at least|at most|no more than|no less than|up to|under|over|nearly"
    r"|between)\s+)*"
)
_LONG = r"(?:\s+(?:long|in length|in total|or so|or less|or more|or longer|total))*"
_CLAUSES = tuple(  # that can be cut out of a sentence
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_NUMBER}[-\u2011]?\s*(?:word|page)\s+(?=[^\W\d])",  # "a 2,000-word tale"
        rf"\s*[(\[]\s*{_ABOUT}{_LENGTH.pattern}{_LONG}\s*[)\]]",
        rf",?\s+(?:of|in|with|at|using)\s+{_ABOUT}{_LENGTH.pattern}{_LONG}",
        rf",\s*(?:and\s+)?{_ABOUT}{_LENGTH.pattern}{_LONG}(?=\s*(?:[.,;!?]|$))",
        rf"\b{_ABOUT}{_LENGTH.pattern}\s+(?=(?:about|on|in which)\b)",  # "write 900 words about"
    )
)
_ENDS = re.compile(r"((?<=[.!?])\s+|\n+)")
_LEFT_OVER = re.compile(r"\b(?:length|word count|word limit)\b", re.IGNORECASE)
_SAYS_NOTHING = frozenset(
    "a an the please write tell compose create give me us i you want would like one new original "
    "complete full short long very creative fiction fictional story stories tale narrative piece "
    "text prose it in of for as is be should must make keep and".split()
)


def names_length(prompt: str) -> bool:
    """Whether a number of words or pages stands in it."""
    return bool(_LENGTH.search(prompt))


def without_length(prompt: str) -> str:
    """The prompt without what it says of words; "" when nothing else is said in it.

    A clause is cut where the sentence goes on without it; else the sentence goes. Pages may be
    those of a diary: they are cut as clauses, and cost no sentence.
    """
    if not (_WORDS.search(prompt) or names_length(prompt)):
        return prompt
    kept = []
    for part in _ENDS.split(prompt):  # sentences, and what is between them
        cut = part
        for pattern in _CLAUSES:
            cut = pattern.sub("", cut)
        dangles = cut != part and _LEFT_OVER.search(cut)
        kept.append("" if dangles or _WORDS.search(cut) else cut)
    text = re.sub(r"[ \t]{2,}", " ", "".join(kept)).strip()
    words = re.findall(r"[^\W\d_]+", text.lower())
    return text if set(words) - _SAYS_NOTHING else ""
