//! The chaos suite: what is done to a cluster (`scenario`, `plan`), what happened (`history`), sorted (`facts`), whether it
//! may have (`check`), all of it to look at (`report`), and the least that still goes wrong (`shrink`). Usable as a library
//! alone. Never imported by the product.

pub mod check;
pub mod facts;
pub mod history;
pub mod plan;
pub mod report;
pub mod scenario;
pub mod shrink;
