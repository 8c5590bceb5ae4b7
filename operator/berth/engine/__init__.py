"""What runs inside the pod: the launcher (PID 1), the Triton model and its engines. Standard library and numpy only."""
