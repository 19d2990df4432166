"""Readers of files: each gives a `Document`, a tree of sections with titles, roles and text.

markup (HTML elements to pieces) -> outline (pieces and a table of contents to a tree); the other
modules are one format each.
"""

from __future__ import annotations
