"""What others run, written the way they write it: the peers of tests and benchmarks."""
