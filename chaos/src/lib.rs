//! The chaos suite: what is done to a cluster (`scenario`, `plan`), what happened (`history`), sorted (`facts`), whether it
//! may have (`check`), and all of it to look at (`report`). Usable as a library alone. Never imported by the product.

pub mod check;
pub mod draw;
pub mod facts;
pub mod history;
pub mod plan;
pub mod report;
pub mod scenario;
