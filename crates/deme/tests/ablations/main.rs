//! `deme ablate` and `deme plan`.
#![allow(clippy::unwrap_used)]

mod bad_plans;
mod planning;
mod running;
#[path = "../support/mod.rs"]
mod support;
