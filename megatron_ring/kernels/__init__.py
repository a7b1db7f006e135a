"""Operations written for this project: one file an op, each with a plain reference beside it."""
