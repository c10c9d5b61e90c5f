"""What a run will take: tokens, hours, GPU-hours, memory and money (`cgd plan`)."""
