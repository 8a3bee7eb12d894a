//! The chaos suite: what is done to a cluster (`scenario`, `plan`), what happened (`history`), sorted (`facts`), and whether
//! it may have (`check`). Usable as a library alone. Never imported by the product.

pub mod check;
pub mod draw;
pub mod facts;
pub mod history;
pub mod plan;
pub mod scenario;
