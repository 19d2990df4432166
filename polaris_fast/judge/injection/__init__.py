"""Text in a story that speaks to its judge: found without a model, and cut out.

    findings = scan(story)               # () for nearly all fiction
    rest = without(story, findings)      # judged too; the lower score counts
    flags(findings)                      # ("injection:judge_address", ...) for `Scored.flags`

A story that is nothing but injection leaves an empty text, which is scored like any empty story:
quality 0, or the judge's score of the original where that is lower.

`tokens` lists shapes that no prose has, `appeals` English addressed to a grader, `scanning` does
the work on text folded by `plain_text`. The scan is deterministic and linear.
"""

from .rules import Rule
from .scanning import KINDS, Finding, flags, scan, without

__all__ = ["KINDS", "Finding", "Rule", "flags", "scan", "without"]
