//! Map.
fn main() {}
