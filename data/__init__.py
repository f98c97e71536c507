"""Data sets: from raw videos and annotations to TFRecord shards."""
