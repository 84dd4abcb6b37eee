"""The parts of finetune_alpaca.py: its options, its data, what it shows."""
