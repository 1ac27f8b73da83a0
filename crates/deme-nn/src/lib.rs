//! Layers under PyTorch's parameter names, state dicts in and out, the optimiser.
