"""What a run will need and take, before a machine is rented: `python -m polaris_fast.plan`."""
