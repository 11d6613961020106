"""Programs compiled ahead of time for TPU slices that are not there, and what the compiler says of them."""
