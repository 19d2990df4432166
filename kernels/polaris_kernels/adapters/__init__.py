"""Drop-in forms of the head for other trainers; each module imports its host only when called.

- `trl`: `patch_grpo` gives TRL's own GRPO trainer this head.
- `liger`: `LigerFusedLinearGRPOLoss` and `triton_grpo_loss`, by their signatures.
- `verl`: `linear_cross_entropy`, by its signature, tensor-parallel too.
- `openrlhf`: `log_probs_from_logits`, and the same from hidden states.
- `packed`: log-probs of packed rows, as prime-rl and NeMo-RL ask for them.

Nothing here changes another package on import.
"""
