"""From what is seen of a task to the parameters of a policy: encoders, and the decoder."""
