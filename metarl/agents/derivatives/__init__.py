"""Gradients, Hessian-vector products and Jacobian products of losses, for stacks of tasks."""
