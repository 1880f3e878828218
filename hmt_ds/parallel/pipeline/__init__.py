"""A pipeline of stages in a ring: the prompts that the last stage recalls go to the first."""
