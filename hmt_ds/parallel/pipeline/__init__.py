"""Pipeline parallelism: stages of consecutive layers, where the last stage sends recalled prompts to the first."""
