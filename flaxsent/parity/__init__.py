"""The numbers against PyTorch: `flaxsent parity`."""
