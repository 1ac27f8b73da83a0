//! Parameter space: state dicts, task vectors, merging, weight search. No tensor engine.
