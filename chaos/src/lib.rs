//! Chaos tests for Reveille: what happened (the history), and whether it may have (the checkers). A library that is
//! usable alone; faults, workloads and reports come on top of it. Never imported by the product.

pub mod check;
pub mod history;
