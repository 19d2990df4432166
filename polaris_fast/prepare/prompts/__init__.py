"""Prompts for stories: from an endpoint or extracted, and never with a sentence of the story."""

from __future__ import annotations
