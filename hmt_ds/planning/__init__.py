"""What a layout costs, before it runs."""
