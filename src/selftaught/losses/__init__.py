"""Loss functions: pure functions of tensors, one file per family. They import nothing but torch."""
