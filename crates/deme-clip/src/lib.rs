//! CLIP's text and image towers and tokeniser, and the training of a tiny one.
