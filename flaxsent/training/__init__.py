"""Fine-tuning: options, optimizer, batches, steps, and the run that `flaxsent train` is."""
