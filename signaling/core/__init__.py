"""What a meeting is and what may happen in it: plain functions over frozen values, without a clock or any I/O."""
