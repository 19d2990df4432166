"""Rollouts on vLLM servers over HTTP, and their weights kept equal to the trainer's."""
