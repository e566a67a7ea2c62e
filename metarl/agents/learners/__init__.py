"""What learns one task: losses, optimisers and updates that are batched over tasks."""
