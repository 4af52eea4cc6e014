"""What a checkpoint is made of: pages and their records, device state, output held back."""
