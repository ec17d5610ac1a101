"""Files ↔ records, and labels."""
