//! The pure core of Reveille.

pub mod service_list;
