"""From record shards to batches of clips."""
