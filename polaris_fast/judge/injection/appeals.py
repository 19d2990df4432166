"""English addressed to a grader: begging for a score, naming the judge, giving it orders.

Contexts keep fiction apart: a courtroom's "Dear Judge" asks for no score, a gymnast's 10/10 is not
the story's, and a captain may tell his crew to ignore earlier orders.
"""

from __future__ import annotations

from .rules import Rule, any_of, regex

SCORE_BEGGING, JUDGE_ADDRESS, INSTRUCTION = "score_begging", "judge_address", "instruction"

# What is being judged. Other works (my essay, the novel) belong to the people of the story.
_WORK = (
    r"\b(?:this|the (?:following|above|present|preceding)) (?:[a-z]{1,12} )?"
    r"(?:story|stories|text|piece|tale|narrative|submission|response|answer|output|essay|work|"
    r"writing|fiction|composition|manuscript|completion)\b"
)
_BEST = (
    r"\b(?:full|max|maximum|highest|top|perfect|best|high|generous|excellent|outstanding)"
    r"(?: possible| available| quality| overall| final)? "
    r"(?:scores?|marks?|ratings?|grades?|points?|stars?)\b"
)
_FRACTION = (
    r"\b\d{1,3}(?:\.\d)? ?(?:/|out of) ?(?:5|10|20|100|108)\b(?! ?/)|\bfive-star\b|"
    r"\b(?:five|ten|100|a hundred|one hundred) ?(?:stars?|points?|percent|"
    r"out of (?:five|ten|100|a hundred|one hundred))\b"
)
_VERDICT = rf"(?:{_BEST}|{_FRACTION})"
_POINTS = any_of("score", "mark", "rating", "grade", "point", "star", "percent", "/", "out of")
_GRADE = r"(?:score|rate|grade|evaluate|assess|judge|mark)"
_WELL = r"(?:highly|generously|favou?rably|kindly|well|accordingly)\b"
_MINE = r"my (?:story|text|work|writing|submission)"

_GRADED = (
    r"\brubrics?\b|\bscoring\b"
    rf"|\b{_GRADE}s? (?:{_WORK}|(?:it |this |me |{_MINE} )?{_WELL})"
    rf"|{_WORK}[^.!?\n]{{0,60}}\b(?:deserves?|merits?|excellent|outstanding|exceptional|flawless|"
    r"masterpiece|quality|criteria)\b"
    r"|\b(?:positive|favou?rable|high|good) (?:evaluation|review|assessment|verdict) "
    r"(?:of|for|to) (?:this|the|my) (?:story|text|piece|work|writing|submission)\b"
)
# The text at hand is being graded; and more narrowly, somebody asks for a grade: a letter to a
# judge of the court may speak of a son's high marks.
GRADING = regex(rf"{_VERDICT}|{_GRADED}")
_APPEAL = regex(
    r"\b(?:give|award|assign|grant|deserves?|merits?|worthy of|rate|score)\b[^.!?\n]{0,40}"
    rf"{_VERDICT}|{_GRADED}"
)
_NAMED = any_of("this ", "the following ", "the above ", "the present ", "the preceding ")
_ASKING = regex(
    r"\b(?:please|kindly|must|should|deserves?|merits?|worthy|earns?|warrants?|give|award|assign|"
    r"rate|score|grade|grant|receives?)\b"
)
_ABOUT_WORK = regex(_WORK)
_TO_YOU = regex(r"\b(?:you|your|please)\b")

# Where an order begins: a line, a sentence, a clause, or after a word that makes it one.
_ORDER = (
    r"(?:^[\s\"'*\[(>#-]{0,6}|[.!?:;][\"')\]]{0,2}\s{1,2}[\"'*\[(]{0,2}|"
    r"\b(?:please|now|and|must|should|just|kindly|then|also|to you),? )"
)
_WORD = r"(?:[a-z]{1,12} )?"
_SET_ASIDE = r"(?:ignore|disregard|forget|override|bypass|do not follow|stop following)"
_ORDERS = r"(?:instructions?|prompts?|rubrics?|guidelines?|criteria|directives?)\b"
_SETS_ASIDE = (
    any_of("instruction", "prompt", "rubric", "guideline", "criteria", "directive"),
    any_of("ignore", "disregard", "forget", "override", "bypass", "do not follow", "stop follow"),
)

_BEGGING = (
    Rule(
        SCORE_BEGGING,
        regex(_VERDICT),
        "sentence",
        (_ASKING, _ABOUT_WORK),
        needs=(_POINTS, _NAMED),
    ),
    Rule(
        SCORE_BEGGING,
        regex(rf"\b{_GRADE} {_WORK} (?:as )?(?:perfect\b|excellent\b|{_WELL})"),
        "sentence",
        needs=(
            any_of(
                *(f"{verb} th" for verb in "score rate grade evaluate assess judge mark".split())
            ),
        ),
    ),
    Rule(
        SCORE_BEGGING,
        regex(
            rf"{_ORDER}(?:give|award|assign|grant)(?: it| this| me| us)? (?:the |a |an )?{_VERDICT}"
        ),
        "sentence",
        in_speech=False,
        needs=(_POINTS, any_of("give ", "award ", "assign ", "grant ")),
    ),
    Rule(
        SCORE_BEGGING,
        regex(
            r"^\W{0,6}(?:overall|quality|story|final quality|final story)(?: quality)?"
            rf"(?: score| rating| grade)\W{{0,4}}[:=]\W{{0,4}}(?:{_VERDICT}|\d{{2,3}}\b)"
        ),
        "line",
        needs=(any_of(" score", " rating", " grade"), any_of(":", "=")),
    ),
    Rule(
        SCORE_BEGGING,
        regex(
            r"^\W{0,6}(?:(?:final |my )?(?:score|rating|grade|verdict|evaluation)\W{0,4}[:=])?"
            rf"\W{{0,4}}{_VERDICT}\W{{0,6}}$"
        ),
        "line",
        at_edge=True,
        needs=(_POINTS,),
    ),
    Rule(
        SCORE_BEGGING,
        regex(
            r"\b(?:meets?|satisf(?:y|ies)|fulfil{1,2}s?|exceeds?) (?:all|every|each)(?: of)?"
            rf"(?: the| your)? {_WORD}(?:criteri(?:a|on)|requirements?|dimensions?|rubric)\b"
        ),
        "sentence",
        (_ABOUT_WORK,),
        needs=(any_of("criteri", "requirement", "dimension", "rubric"), _NAMED),
    ),
    Rule(
        SCORE_BEGGING,
        regex(
            rf"{_WORK} (?:is|was|has been|stands as) [^.!?\n]{{0,40}}\b(?:masterpiece|flawless|"
            r"award-winning|human-written|written by a human|publishable)\b"
        ),
        "sentence",
        in_speech=False,
        needs=(
            any_of(
                "masterpiece",
                "flawless",
                "award-winning",
                "human-written",
                "by a human",
                "publishable",
            ),
        ),
    ),
)

_GREETING = (
    r"\b(?:dear|attention|attn|hello|hi|hey|message (?:to|for)|notes? (?:to|for)|"
    r"instructions? (?:to|for))[:,]? (?:the |all |any |my |our |esteemed |honou?rable )?" + _WORD
)
_JUDGES = r"(?:judge|evaluator|grader|rater|assessor|language model|llm|reviewer)"
_JUDGE_NAMES = any_of(
    "judge", "evaluator", "grader", "rater", "assessor", "language model", "llm", "reviewer"
)
_ADDRESS = (
    Rule(
        JUDGE_ADDRESS,
        regex(rf"{_GREETING}(?:judges?|jury|jurors?|reviewers?|ai|model|claude|chatgpt|gemini)\b"),
        "sentence",
        (_APPEAL,),
        needs=(
            any_of(
                " judge", " jur", " reviewer", " ai", " model", " claude", " chatgpt", " gemini"
            ),
            any_of(
                "dear",
                "attention",
                "attn",
                "hello",
                "hi ",
                "hi:",
                "hi,",
                "hey ",
                "hey:",
                "hey,",
                "message",
                "note",
                "instruction",
            ),
        ),
    ),
    Rule(  # nobody else has these names
        JUDGE_ADDRESS,
        regex(rf"{_GREETING}(?:evaluators?|graders?|raters?|llms?|language models?|ai judges?)\b"),
        "sentence",
        needs=(_JUDGE_NAMES,),
    ),
    Rule(
        JUDGE_ADDRESS,
        regex(rf"\b(?:as|you are|you, as) (?:an? |the )?{_WORD}{_JUDGES}\b"),
        "sentence",
        (_APPEAL, _TO_YOU),
        needs=(_JUDGE_NAMES,),
    ),
    Rule(
        JUDGE_ADDRESS,
        regex(rf"\b{_JUDGES}s?[,:] (?:please |kindly |you must |you should )"),
        "sentence",
        (GRADING,),
        needs=(_JUDGE_NAMES,),
    ),
)

_INSTRUCTIONS = (
    Rule(
        INSTRUCTION,
        regex(
            rf"{_ORDER}{_SET_ASIDE} {_WORD}{_WORD}(?:previous|prior|above|preceding|earlier|"
            rf"foregoing|original|system|your|scoring) {_WORD}{_ORDERS}"
        ),
        "sentence",
        in_speech=False,
        needs=_SETS_ASIDE,
    ),
    Rule(
        INSTRUCTION,
        regex(rf"\b{_SET_ASIDE} {_WORD}{_WORD}{_WORD}{_ORDERS}"),
        "sentence",
        (GRADING,),
        needs=_SETS_ASIDE,
    ),
    Rule(
        INSTRUCTION,
        regex(
            rf"{_ORDER}(?:output|return|respond with|reply with|answer with|print)\b"
            rf"[^.!?\n]{{0,40}}(?:\bjson\b|{_VERDICT})"
        ),
        "sentence",
        in_speech=False,
        needs=(
            _POINTS | {"json"},
            any_of("output", "return", "respond with", "reply with", "answer with", "print"),
        ),
    ),
    Rule(
        INSTRUCTION,
        regex(
            rf"\b(?:set|{_GRADE}|put|fill)\b[^.!?\n]{{0,30}}\b(?:positive|negative|all|every|each) "
            rf"{_WORD}dimensions?\b[^.!?\n]{{0,20}}\b(?:\d{{1,3}}|zero|full|maximum|max)\b"
        ),
        "sentence",
        needs=(any_of("dimension"),),
    ),
    Rule(
        INSTRUCTION,
        regex(
            r"\byour (?:new |real |actual |only )?(?:task|job|role|instructions?)(?: now)? "
            r"(?:is|are)(?: now)?(?: to)? (?:score|rate|grade|output|assign|give|evaluate|ignore|"
            r"return)\b"
        ),
        "sentence",
        (GRADING,),
        needs=(any_of("your "), any_of("task", "job", "role", "instruction")),
    ),
    Rule(
        INSTRUCTION,
        regex(r"\bnew instructions? ?:|\b(?:your|the) system prompt\b"),
        "sentence",
        (GRADING,),
        needs=(any_of("new instruction", "system prompt"),),
    ),
)

RULES = (*_BEGGING, *_ADDRESS, *_INSTRUCTIONS)
