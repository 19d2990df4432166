"""A prompt without a language model: a story's title and the words that carry its first scene.

Single words only, so that no sentence of the story can be in it.
"""

from __future__ import annotations

import re
from collections import Counter

SCENE_CHARS = 2000
# Enough of English to keep function words out of an extracted prompt.
_STOP_WORDS = frozenset(
    "a about after again all also always an and any are as at away back be because been before "
    "being but by came can come could did do does don't down each even ever every few first for "
    "from get go good got had has have he her here him his how i if in into is it its just know "
    "last left like little long look looked made make man many may me more most much must my "
    "never new no not nothing now of off old on once one only or other our out over own said same "
    "saw say see she should since so some still such than that the their them then there these "
    "they thing this those though through time to too two under until up upon us very was way we "
    "well went were what when where which while who why will with woman would years yet you "
    "your".split()
)


def extract_prompt(title: str, story: str) -> str:
    """A prompt from the title ("" for none) and the words that carry the first scene."""
    scene = story[:SCENE_CHARS].split("\n\n\n")[0]
    words = re.findall(r"[A-Za-z][A-Za-z']+", scene)
    # A capital after a lower-case word is a name, not the start of a sentence.
    names = Counter(
        name
        for name in re.findall(r"(?<=[a-z,;] )[A-Z][a-z]{2,}", scene)
        if name.lower() not in _STOP_WORDS
    )
    content = Counter(
        w.lower() for w in words if w.lower() not in _STOP_WORDS and len(w) > 3 and w.islower()
    )
    people = [name for name, _ in names.most_common(2)]
    things = [word for word, _ in content.most_common(4)]
    prompt = f'Write a short story called "{title}".' if title else "Write a short story."
    if people:
        prompt += f" It is about {' and '.join(people)}."
    if things:
        prompt += f" The first scene brings in: {', '.join(things)}."
    return prompt
