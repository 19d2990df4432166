"""Tests of the drop-in package."""
