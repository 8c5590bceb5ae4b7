"""A small kubelet for nodes that are not there: pods as processes (docs/designs/012-local-cluster.md)."""
