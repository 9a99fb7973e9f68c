"""The batched trainer: many inner runs of equal shape as one tensor program."""
