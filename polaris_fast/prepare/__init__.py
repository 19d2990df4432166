"""From books and text files to a data set that training reads: `python -m polaris_fast.prepare`.

sources/ (files to documents) -> stories (documents to drafts) -> clean -> fingerprints
 -> duplicates -> split -> prompts/ -> files, card, page; `pipeline` conducts.
"""

from __future__ import annotations
