"""Evaluation: answers of a model, the checkers that judge them, and the intervals that go with every figure."""
