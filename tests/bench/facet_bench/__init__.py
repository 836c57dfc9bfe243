"""The parts of tests/bench/run.py; its README says what each is for."""
