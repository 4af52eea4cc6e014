"""One connection, one direction of work: checkpoints out and in, a migration out and in."""
