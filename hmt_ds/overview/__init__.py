"""What runs did and do: ``hmt-ds status`` and ``hmt-ds report``, from the files in their folders."""
