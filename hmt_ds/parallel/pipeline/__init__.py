"""Pipeline parallelism: each stage has consecutive layers, and the last stage sends retrieved memories to the first."""
