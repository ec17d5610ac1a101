"""Much-used classification checkpoints beside transformers: `flaxsent parity --zoo`."""
