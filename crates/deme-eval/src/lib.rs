//! Images in, numbers out: feature statistics, Frechet distance, CLIP score.
