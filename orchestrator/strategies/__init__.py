"""What comes next: each strategy is a fixed function of seed and history."""
