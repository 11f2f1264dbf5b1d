"""One sequence over several processes: who holds which tokens, who needs which, how they travel."""
