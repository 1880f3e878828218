"""Pipeline parallelism: stages of consecutive layers, where the last stage sends recalled memories to the first."""
