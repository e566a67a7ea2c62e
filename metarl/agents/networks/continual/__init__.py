"""Networks that learn one task after another and keep what they were."""
