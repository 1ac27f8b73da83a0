//! `deme sample` with prompts, and `deme run` on captions.
#![allow(clippy::unwrap_used)]

mod run;
mod sample;
#[path = "../support/mod.rs"]
mod support;
