"""Images: shards on disk, exact order, augmentation, batches."""
