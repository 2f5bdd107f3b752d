"""Fine-tuning on packed batches: pictures of any size and captions of any length, without buckets or padding."""
