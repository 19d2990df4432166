"""Flow control: small state machines that take the time as an argument, and what waits on them.

    aimd          how many requests may be in flight; a burst of throttling cuts and holds
    gate          lets requests through, oldest job first, as many as `aimd` allows
    buckets       requests and tokens a minute, estimated before and corrected after a call
    allowance     extra calls as a share of first ones: retries, hedges
    hedging       a second request beside a straggler
    breaker       stops sending when the judge is down or refuses to work
    cost          dollars: nothing is sent that could pass the budget
    panel         one judge for all rows of a group
    admission     breaker, gate, cost and buckets in the order a request meets them

Only `gate`, `hedging` and `admission` wait; the others never read a clock.
"""
