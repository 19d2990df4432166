"""Many processes, one run: rank 0 conducts, the others follow.

Rank 0 (the conductor) owns the data order, the judge pool, the advantages, the plan of the
micro-batches, the logs and the checkpoints. All ranks, rank 0 among them, write stories and run
forward, backward and update. What the conductor wants done goes to every rank as a command, so
collective operations start on all ranks in the same order.

    world     who we are: rank, size, device; joins torch's process group
    channel   commands out, replies back, over gloo
    streams   finished rows on their way from a follower to the conductor
    rollouts  `RolloutEngine` over all ranks
    slots     `Slots` over all ranks
    follower  the loop of ranks above 0
"""

from .world import World, join_world

__all__ = ["World", "join_world"]
