"""The demonstration: a model placed, served, hit and healed before one's eyes, on simulated hardware."""
